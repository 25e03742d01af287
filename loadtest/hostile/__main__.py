"""Attack a server on a loopback address and measure what another client notices.

    python -m loadtest.hostile --url http://127.0.0.1:8000 --server-pid PID
    python -m loadtest.hostile --url http://127.0.0.1:8000 --only C1 H4

For each attack, a victim is measured alone and then during the attack. The victim posts one 2 s clip every 0.3 s from an address
of its own, and asks for `/health` every 0.2 s, each time on a new connection. All attackers share one other address and run in
another process. Every attack ends with the victim's measurement. With the server's process id its memory is read before each
attack, during it, and after `--settle-seconds`; C3, which kills decode workers, is left out without it. H2 is about a server that
may open few files: start one after `ulimit -n 1024`. Prints one table; exits with 1 if any attack misses the targets.
"""

import sys

from loadtest.hostile.attacks import ATTACKS, chosen_attacks
from loadtest.hostile.target import check_loopback, read_target
from loadtest.hostile.trial import carry_out, report
from loadtest.support.options import new_parser


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--url", required=True, help="the server, at a loopback address; it is slowed down and may fail")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"which attacks; default: all of {', '.join(ATTACKS)}")
    parser.add_argument("--server-pid", type=int, help="the server's process id, which C3 needs")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the victim is measured under each attack")
    parser.add_argument("--settle-seconds", type=float, default=0.0, help="how long memory gets to come back after each attack")
    parser.add_argument("--alone-seconds", type=float, default=6.0, help="how long it is measured alone before each attack")
    arguments = parser.parse_args()
    try:
        check_loopback(arguments.url)
        names = chosen_attacks(arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if arguments.server_pid is None and "C3" in names:
        print("C3 is left out: it needs --server-pid.", flush=True)
        names.remove("C3")
    target = read_target(arguments.url)
    outcomes = []
    for name in names:
        print(f"{name}: {ATTACKS[name].summary} ...", flush=True)
        times_s = (arguments.alone_seconds, arguments.seconds, arguments.settle_seconds)
        outcomes.append(carry_out(name, target, arguments.server_pid, *times_s))
        print(report(outcomes[-1:]), flush=True)
    print(report(outcomes))
    return 0 if all(outcome.meets_targets for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
