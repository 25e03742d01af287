"""Whether live sessions leave anything behind: thousands of them, begun and dropped at random points.

    python -m loadtest.sessions         # 2,000 sessions, some minutes; writes sessions.md, .json and .png to loadtest/results

Starts a server of its own. Each session goes at a point of its own (before its first message, before any audio, within it, right
after a flush) and in a way of its own (the protocol's end, a close, a reset, silence until the server ends it), and one in eight
brings Ogg Opus: seeds decide. After a hundred that are not counted, in the middle and at the end it waits until the server's
gauges say that nothing goes on, and looks at its processes. Exit status 1 where something is left: gauges, processes, open
files, threads, or more than 4 MiB of memory between the middle and the end; and where a session was not ended as it should be.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from loadtest.clients.drops import as_opus, choose_drop, run_drop
from loadtest.clients.server import BenchServer, ServerError, add_server_flags, server_options
from loadtest.live.audio import StreamAudio, clear_speech, make_stream
from loadtest.support.footprint import Footprint, Reading, Watch, footprints, total
from loadtest.support.gauges import read_metrics
from loadtest.support.machine import describe_run
from loadtest.support.markdown import conditions, table
from loadtest.support.options import add_data_flag, add_results_flag, new_parser
from loadtest.support.paths import CLIPS, ROOT
from loadtest.support.plots import plot_memory
from loadtest.support.process import OthersWatch
from loadtest.support.recordings import read_recordings
from loadtest.support.results import write_results

SESSIONS = 2000
WARM_UP_SESSIONS = 100
CONCURRENCY = 16
SPARE_SESSIONS = 16
IDLE_TIMEOUT_S = 1.0
OPUS_SHARE = 1 / 8
AUDIO_S = 5.0
QUIET_TIMEOUT_S = 60.0
SETTLE_S = 2.0
WATCH_PERIOD_S = 2.0
MAX_GROWTH_MIB = 4.0
SHOWN = 20
GAUGES = (
    "live_sessions",
    "live_jobs",
    "stream_sockets",
    "num_requests_running",
    "num_requests_waiting",
)
"""All of them are 0 where nothing is going on."""


@dataclass(frozen=True)
class Look:
    """At a server on which nothing goes on, after so many sessions: its gauges, and what its processes hold."""

    sessions: int
    gauges: dict[str, float]
    processes: list[Footprint]


def read_gauges(server: BenchServer) -> dict[str, float]:
    """Return the gauges by name. Raises `ServerError` for one that the server does not have."""
    values = read_metrics(server.client)
    if missing := [name for name in GAUGES if name not in values]:
        raise ServerError(f"The server has no metric thinbridge_{missing[0]}.")
    return {name: values[name] for name in GAUGES}


def look(server: BenchServer, sessions: int) -> Look:
    """Once all gauges are 0 and memory had time to settle, or after `QUIET_TIMEOUT_S`."""
    deadline_s = time.monotonic() + QUIET_TIMEOUT_S
    while any((gauges := read_gauges(server)).values()) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    time.sleep(SETTLE_S)
    return Look(sessions, gauges, footprints(server.pid))


def leaks(before: Look, middle: Look, after: Look) -> list[str]:
    """Return the quantities that did not return to their earlier values, a sentence each."""
    found = [f"{name} is {value:g} after all sessions" for name, value in after.gauges.items() if value]
    begun, ended = total(before.processes), total(after.processes)
    found += [
        f"{ended[kind]:g} {kind} after all sessions, {begun[kind]:g} before"
        for kind in ("processes", "files", "threads")
        if ended[kind] > begun[kind]
    ]
    growth_mib = total(after.processes)["anonymous_mib"] - total(middle.processes)["anonymous_mib"]
    if growth_mib > MAX_GROWTH_MIB:
        found.append(f"memory grew by {growth_mib:.1f} MiB from session {middle.sessions} to session {after.sessions}")
    return found


def have_sessions(server: BenchServer, seeds: Sequence[int], concurrency: int, speech: StreamAudio) -> list[str]:
    """Have the sessions of some seeds, so many at a time; what the server did wrong in them."""
    opus = as_opus(speech)
    with ThreadPoolExecutor(concurrency) as pool:
        plays = pool.map(lambda seed: run_drop(server.url, choose_drop(seed, OPUS_SHARE), speech.pcm, opus), seeds)
        return [complaint for complaint in tqdm(plays, total=len(seeds), unit="session", mininterval=2) if complaint]


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Reading]]:
    """Have all sessions; the result as it is written, and the server's memory meanwhile. Raises `ServerError`."""
    result = describe_run(ROOT)
    speech = make_stream(clear_speech(read_recordings(arguments.data, CLIPS, limit=20)), AUDIO_S, seed=0)
    seeds = range(arguments.sessions)
    half = arguments.sessions // 2
    limits = {"live_idle_timeout_s": IDLE_TIMEOUT_S, "live_sessions": arguments.concurrency + SPARE_SESSIONS}
    with BenchServer(ROOT, server_options(arguments), **limits) as server:
        have_sessions(server, range(-WARM_UP_SESSIONS, 0), arguments.concurrency, speech)
        before = look(server, 0)
        others = OthersWatch()
        with Watch(server.pid, WATCH_PERIOD_S) as watch:
            wrong = have_sessions(server, seeds[:half], arguments.concurrency, speech)
            middle = look(server, half)
            wrong += have_sessions(server, seeds[half:], arguments.concurrency, speech)
            after = look(server, arguments.sessions)
        other_cpu_share = others.share()
    drops = [choose_drop(seed, OPUS_SHARE) for seed in seeds]
    return result | {
        "other_cpu_share": round(other_cpu_share, 4),
        "leaks": leaks(before, middle, after),
        "wrongly_ended": wrong,
        "sessions": arguments.sessions,
        "concurrency": arguments.concurrency,
        "kinds": Counter(f"{drop.leaving.value}, {drop.point.value}" for drop in drops),
        "opus": sum(drop.encoding == "ogg_opus" for drop in drops),
        "looks": [asdict(each) for each in (before, middle, after)],
        "totals": [{"sessions": each.sessions, **total(each.processes)} for each in (before, middle, after)],
    }, watch.readings


def markdown(result: dict[str, Any]) -> str:
    """Return the whole report."""
    before, middle, after = result["totals"]
    growths = [round(late["anonymous_mib"] - early["anonymous_mib"], 2) for early, late in ((before, middle), (middle, after))]
    wrong = result["leaks"] + result["wrongly_ended"][:SHOWN]
    lines = [
        "# Live sessions begun and dropped",
        "",
        *conditions(result),
        *(["**Not as it should be:**", "", *(f"- {each}" for each in wrong), ""] if wrong else []),
        f"{result['sessions']} live sessions, {result['concurrency']} at a time, {result['opus']} of them with Ogg Opus; each "
        f"went at a random point, in a random way. {len(result['wrongly_ended'])} were not ended as they should be. Memory grew "
        f"by {growths[0]} MiB in the first half and {growths[1]} MiB in the second, where {MAX_GROWTH_MIB:g} MiB count as none.",
        "",
        *table(
            ["after sessions", "processes", "open files", "threads", "MiB"], [list(each.values()) for each in result["totals"]]
        ),
        "",
        "All processes of the server together, when nothing was going on, without pages of files. By process:",
        "",
        *table(
            ["process", "MiB before", "after", "open files before", "after", "threads before", "after"],
            [
                [
                    first["name"],
                    *(
                        cell
                        for key in ("anonymous_mib", "files", "threads")
                        for cell in (round(first[key], 1), round(last[key], 1))
                    ),
                ]
                for first, last in _same_processes(result["looks"])
            ],
        ),
        "",
        *table(["how they went", "sessions"], [[kind, count] for kind, count in sorted(result["kinds"].items())]),
        "",
        "![memory](sessions.png)",
    ]
    return "\n".join(lines) + "\n"


def _same_processes(looks: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    before = {each["pid"]: each for each in looks[0]["processes"]}
    return [(before[each["pid"]], each) for each in looks[-1]["processes"] if each["pid"] in before]


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="how many (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY, help="how many at a time (default: %(default)s)")
    add_data_flag(parser)
    add_results_flag(parser)
    add_server_flags(parser)
    arguments = parser.parse_args()
    try:
        result, readings = run(arguments)
    except ServerError as error:
        print(f"sessions: {error}", file=sys.stderr)
        return 2
    text = markdown(result)
    write_results(arguments.out, "sessions", result, text)
    title = f"{arguments.sessions} live sessions, begun and dropped"
    plot_memory({"all processes": readings}, arguments.out / "sessions.png", title, result["machine"].split(",")[0])
    print(text)
    return 1 if result["leaks"] or result["wrongly_ended"] else 0


if __name__ == "__main__":
    sys.exit(main())
