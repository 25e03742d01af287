"""Run every kind of client for a long time while faults are injected, and judge what comes of it.

    python -m loadtest.soak                   # an hour; writes soak.md, .json and .png to loadtest/results
    python -m loadtest.soak --seconds 300     # five minutes

Starts a server of its own and locust's mixed users, who reach it through a proxy. After a warm-up without faults, one fault of
`loadtest/soak/faults.py` comes after the other, every 90 s, or as often as lets each of them come once; from ten minutes on all
have time to. Exit status 1 where a bar is missed, 2 where the run is void: its generator was late, or other work of a normal
priority took the machine.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from loadtest.clients.server import BenchServer, ServerError, add_server_flags, server_options
from loadtest.soak.bars import SETTLE_S, Bar, Injection, judge_faults, judge_memory, judge_outcomes, read_outcomes
from loadtest.soak.clock import Clock
from loadtest.soak.faults import FAULTS, Target
from loadtest.soak.proxy import Proxy
from loadtest.soak.report import markdown, plot
from loadtest.support.footprint import Watch
from loadtest.support.leaks import leaks, look
from loadtest.support.machine import describe_run
from loadtest.support.options import add_results_flag, new_parser
from loadtest.support.paths import ROOT
from loadtest.support.process import OthersWatch
from loadtest.support.results import write_results
from loadtest.users.headless import running_users

SERVER_PROCESS = "server"
WARM_UP_SHARE, MAX_WARM_UP_S = 0.15, 300.0
WATCH_PERIOD_S = 2.0
USERS_END_S = 150.0
READY_TIMEOUT_S, LOST_TIMEOUT_S = 60.0, 600.0
STALL_TIMEOUT_S = 10.0
FIRST_FAULT_S = 20.0
MOST_PERIOD_S = 90.0
CALM_S = SETTLE_S + 10.0
"""From a fault's end to the next one at least: after `SETTLE_S` of it, outcomes count as away from faults."""
MAX_OTHER_CPU_SHARE = 0.2


def soak_options(record: Path) -> list[str]:
    """Return the users' options: their record, and limits that only `judge_outcomes` sets."""
    return ["--record", str(record), "--max-failed", "1", "--max-p95-s", "1000"]


def inject(name: str, target: Target) -> Injection:
    """Inflict a fault and wait until the server is ready again."""
    begin_s = time.monotonic()
    complaint = ""
    try:
        FAULTS[name](target)
    except (TimeoutError, OSError) as error:
        complaint = f"{type(error).__name__}: {error}"
    waiting_s = time.monotonic()
    while not is_ready(target.server) and time.monotonic() < waiting_s + LOST_TIMEOUT_S:
        # Failures until it is ready again still belong to the fault.
        if time.monotonic() > waiting_s + READY_TIMEOUT_S:
            complaint = f"not ready within {READY_TIMEOUT_S:g} s"
        time.sleep(0.2)
    return Injection(name, begin_s, time.monotonic(), complaint)


def is_ready(server: BenchServer) -> bool:
    """Whether `/ready` says so; a server that does not answer is not."""
    try:
        return httpx.get(f"{server.url}/ready", timeout=10.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def choose_period(seconds: float, faults: int) -> float:
    """Return the seconds from one fault to the next by which so many have time within `seconds`: at most `MOST_PERIOD_S`."""
    # One more than there are: users need time to start.
    return min(MOST_PERIOD_S, (seconds - FIRST_FAULT_S) / (faults + 1))


def due_after(last: Injection, period_s: float) -> float:
    """Return when the next fault comes, by the monotonic clock: a period after the last one's begin, and never in its wake."""
    return max(last.begin_s + period_s, last.end_s + CALM_S)


def inject_until(end_s: float, period_s: float, target: Target, names: Sequence[str]) -> list[Injection]:
    """Inject the named faults one after the other, again and again, so that each has time until `end_s`."""
    done: list[Injection] = []
    for name in itertools.cycle(names):
        due_s = due_after(done[-1], period_s) if done else time.monotonic()
        if due_s + period_s > end_s:
            return done
        time.sleep(max(0.0, due_s - time.monotonic()))
        done.append(inject(name, target))
        print(f"{name}: {done[-1].end_s - done[-1].begin_s:.1f} s {done[-1].complaint}", flush=True)
    return done


def main() -> int:
    parser = new_parser(__doc__)
    add_server_flags(parser)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--period", type=float, metavar="SECONDS", help="from one fault to the next")
    parser.add_argument("--users", type=int, default=6)
    add_results_flag(parser)
    parser.add_argument("--only", nargs="*", default=[""], metavar="TEXT", help="faults with one of these in their names")
    arguments = parser.parse_args()
    names = [name for name in FAULTS if any(text in name for text in arguments.only)]
    if not names:
        parser.error(f"no fault has one of {arguments.only} in its name")
    result: dict[str, Any] = describe_run(ROOT)
    warm_up_s = min(MAX_WARM_UP_S, WARM_UP_SHARE * arguments.seconds)
    options = [*server_options(arguments), "--stall-timeout-s", str(STALL_TIMEOUT_S)]
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as clock_folder,
        BenchServer(ROOT, options, environment=(clock := Clock(Path(clock_folder))).variables) as server,
        Proxy(server.url) as proxy,
    ):
        others = OthersWatch()
        record = Path(folder) / "record.jsonl"
        with running_users(proxy.url, arguments.users, warm_up_s, *soak_options(Path(folder) / "warm_up.jsonl")) as users:
            users.communicate(timeout=warm_up_s + USERS_END_S)
        before = look(server, 0)
        begin_s = time.monotonic()
        seconds = arguments.seconds - warm_up_s
        period_s = arguments.period or choose_period(seconds, len(names))
        with (
            Watch(server.pid, WATCH_PERIOD_S) as watch,
            running_users(proxy.url, arguments.users, seconds, *soak_options(record)) as users,
        ):
            time.sleep(FIRST_FAULT_S)
            injections = inject_until(begin_s + seconds, period_s, Target(server, proxy, clock), names)
            summary = users.communicate(timeout=max(0.0, begin_s + seconds - time.monotonic()) + USERS_END_S)[0]
        after = look(server, 1)
        outcomes = read_outcomes(record)
    left = [each for each in leaks(before, after, after) if "memory" not in each]
    bars = [
        judge_faults(injections, names),
        *judge_outcomes(outcomes, injections),
        Bar("gauges, processes, files and threads that are left", "none", "; ".join(left) or "none", not left),
        judge_memory(watch.readings, SERVER_PROCESS),
    ]
    other_cpu_share, low_priority_share = others.share(), others.share_at_low_priority()
    void = [line.removeprefix("VOID: ") for line in summary.splitlines() if line.startswith("VOID: ")]
    if other_cpu_share - low_priority_share > MAX_OTHER_CPU_SHARE:
        void.append(f"other work at a normal priority took over {MAX_OTHER_CPU_SHARE:.0%} of the machine")
    result |= {
        "other_cpu_share": round(other_cpu_share, 4),
        "low_priority_cpu_share": round(low_priority_share, 4),
        "seconds": arguments.seconds,
        "users": arguments.users,
        "period_s": round(period_s, 1),
        "void": void,
    }
    details = {"bars": [asdict(bar) for bar in bars], "faults": [asdict(each) for each in injections]}
    write_results(arguments.out, "soak", result | details, markdown(result, bars, injections, outcomes, begin_s))
    plot(outcomes, injections, watch.readings, arguments.out / "soak.png", begin_s)
    for bar in bars:
        print(f"{bar.name}: {bar.value} (limit {bar.limit}) {'' if bar.kept is None else 'kept' if bar.kept else 'MISSED'}")
    if any(bar.kept is False for bar in bars):
        return 1
    return 2 if result["void"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ServerError, subprocess.TimeoutExpired) as error:
        print(f"The soak broke off: {error}", file=sys.stderr)
        sys.exit(1)
