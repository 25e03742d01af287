"""All trials of clients that leave, stall, or read nothing, by one command: others notice little, and memory stays.

    python -m loadtest.hostile.abuse                       # starts a server of its own; ten minutes
    python -m loadtest.hostile.abuse --seconds 20 --aborts 60

First come the aborts (`loadtest.hostile.aborts`). Then a victim asks alone and, in turns, beside each of W1 (unfinished messages
of 15 MiB), W2 (live sessions of noise that read nothing; W2-speech: of speech) and H3-slow (uploads of a byte per second), as in
`loadtest.hostile`. Prints one table, with the load of the machine before the run: on a busy one the times say little. Exits
with 1 where a target is missed.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.clients.server import BenchServer, add_server_flags, server_options
from loadtest.hostile.aborts import MAX_FREE_S, try_aborts
from loadtest.hostile.aborts import Report as AbortReport
from loadtest.hostile.attacks import ATTACKS
from loadtest.hostile.target import read_target
from loadtest.hostile.trial import Outcome, carry_out
from loadtest.support.markdown import table
from loadtest.support.options import new_parser
from loadtest.support.paths import ROOT

STALLS = ("W1", "W2", "W2-speech", "H3-slow")
ROUNDS = 3
MAX_SLOWDOWN, MAX_GROWTH_MIB = 1.2, 64.0
PERCENT = 99


@dataclass(frozen=True)
class Row:
    """One target of one trial, what was measured, and whether that meets it."""

    trial: str
    target: str
    measured: str
    met: bool


def abort_rows(report: AbortReport) -> list[Row]:
    """Return the targets of the aborts."""
    trial = f"{len(report.freed_s)} aborts of JSON, events and live sessions"
    free = "never" if report.p99_s is None else f"{1000 * report.p99_s:.0f} ms"
    answers = sum(report.answers.values())
    return [
        Row(trial, f"the place is free, p99 at most {1000 * MAX_FREE_S:.0f} ms", free, (report.p99_s or 1e9) <= MAX_FREE_S),
        Row(
            trial,
            "neighbours' answers are those that they get alone",
            f"{answers - report.disturbed} of {answers}",
            answers > 0 and not report.disturbed,
        ),
    ]


def stall_rows(outcome: Outcome) -> list[Row]:
    """Return the targets of one attack by clients that stall."""
    trial = ATTACKS[outcome.name].summary
    alone_s, attacked_s = (each.percentile_s(PERCENT) for each in (outcome.alone, outcome.attacked))
    times = [None if each is None else f"{1000 * each:.0f} ms" for each in (alone_s, attacked_s)]
    rows = [
        Row(trial, "others are all answered", f"{outcome.attacked.answered:.0%}", outcome.attacked.answered == 1.0),
        Row(
            trial,
            f"others' p{PERCENT}, at most {MAX_SLOWDOWN:g} times that alone",
            f"{times[0]} alone, {times[1]}",
            alone_s is not None and attacked_s is not None and attacked_s <= MAX_SLOWDOWN * alone_s,
        ),
    ]
    if outcome.memory_mib is not None:
        before, most, after = outcome.memory_mib
        measured = f"{before:.0f} MiB before, at most {most:.0f}, {after:.0f} after"
        rows.append(Row(trial, f"memory within {MAX_GROWTH_MIB:.0f} MiB", measured, most - before <= MAX_GROWTH_MIB))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    cells = [[row.trial, row.target, row.measured, "yes" if row.met else "NO"] for row in rows]
    return "\n".join(table(["trial", "target", "measured", "met"], cells)) + "\n"


def main() -> int:
    parser = new_parser(__doc__)
    add_server_flags(parser)
    parser.add_argument("--aborts", type=int, default=300)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long the victim is measured alone, and under each attack"
    )
    parser.add_argument("--settle-seconds", type=float, default=5.0, help="how long memory gets to come back after each attack")
    arguments = parser.parse_args()
    print(f"Load of the machine before the run: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.", flush=True)
    rows: list[Row] = []
    with BenchServer(ROOT, server_options(arguments)) as server:
        target = read_target(server.url)
        if arguments.aborts:
            rows += abort_rows(try_aborts(target, range(arguments.aborts)))
            print(markdown(rows), flush=True)
        for name in STALLS:
            times_s = (arguments.seconds, arguments.seconds, arguments.settle_seconds)
            rows += stall_rows(carry_out(name, target, server.pid, *times_s, rounds=ROUNDS))
            print(markdown(rows[-3:]), flush=True)
    print(markdown(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
