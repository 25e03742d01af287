"""How many requests and live sessions a machine holds at which latency: a simulation of the server's own scheduler.

    python -m loadtest.capacity measure --out costs.json        # the stages' costs on this machine; 2 minutes
    python -m loadtest.capacity simulate costs.json             # what so many sessions and clients wait
    python -m loadtest.capacity simulate costs.json --hardware h100 h200 --limit-ms 1000 --plot capacity.png
    python -m loadtest.capacity validate --out loadtest/results # measures, simulates and plays six mixes; 6 minutes

`measure` and `validate` run the default model, and nothing else should run beside them. The rows of GPUs are predictions by
roofline (`hardware.py`), which nothing has confirmed.
"""

import argparse
import sys
from pathlib import Path

from loadtest.capacity.costs import StageCosts, read_costs, write_costs
from loadtest.capacity.hardware import GPUS, SHAPES, predict_costs
from loadtest.capacity.levels import Level, find_most_sessions, make_mix, run_level
from loadtest.capacity.report import describe_costs, describe_levels, describe_validation, plot_levels
from loadtest.clients.server import ServerError, add_server_flags, server_options
from loadtest.live.audio import StreamAudio, clear_speech, make_stream
from loadtest.support.machine import describe_run
from loadtest.support.options import add_data_flag, add_results_flag
from loadtest.support.paths import CLIPS, ROOT
from loadtest.support.recordings import Recording, read_recordings
from loadtest.support.results import write_results

MAX_RECORDINGS = 8
MAX_STREAM_RECORDINGS = 60
STREAMS = 2
SESSION_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def measure_command(arguments: argparse.Namespace) -> int:
    """Measure the stage costs and write them."""
    recordings, streams = read_speech(arguments)
    costs = measure(arguments, recordings, streams)
    write_costs(costs, arguments.out)
    print("\n".join(describe_costs(costs)))
    return 0


def simulate_command(arguments: argparse.Namespace) -> int:
    """Simulate sweeps of sessions, and the mixes that were asked for."""
    measured = read_costs(arguments.costs)
    systems = {"measured": measured} if "measured" in arguments.hardware else {}
    for name in arguments.hardware:
        if name != "measured":
            costs = predict_costs(GPUS[name], SHAPES[arguments.shape], measured)
            systems[costs.name] = costs
    swept: dict[str, list[Level]] = {}
    for name, costs in systems.items():
        counts = [count for count in SESSION_COUNTS if count <= arguments.most_sessions]
        levels = list(find_most_sessions(costs, arguments.seconds, arguments.limit_ms / 1000, counts))
        swept[name] = levels
        for clients in arguments.clients:
            mix = make_mix(costs, arguments.seconds, clients=clients, audio_s=arguments.audio_s)
            levels = [*levels, run_level(costs, mix, arguments.seconds)]
        for rate_hz in arguments.rates:
            mix = make_mix(costs, arguments.seconds, rate_hz=rate_hz, audio_s=arguments.audio_s)
            levels = [*levels, run_level(costs, mix, arguments.seconds)]
        print("\n".join([f"## {name}", "", *describe_costs(costs), *describe_levels(levels)]))
    if arguments.plot:
        plot_levels(swept, arguments.plot)
    return 0


def validate_command(arguments: argparse.Namespace) -> int:
    """Measure the costs, simulate six mixes, play them against a server, and write both."""
    from loadtest.capacity.validate import validate

    recordings, streams = read_speech(arguments)
    run = describe_run(ROOT)
    costs = measure(arguments, recordings, streams)
    result = {"run": run} | validate(ROOT, costs, recordings, streams, arguments.seconds, server_options(arguments))
    page = describe_validation(result)
    write_results(arguments.out, "capacity", result, page)
    write_costs(costs, arguments.out / "capacity_costs.json")
    print(page)
    return 0


def measure(arguments: argparse.Namespace, recordings: list[Recording], streams: list[StreamAudio]) -> StageCosts:
    """Measure on this machine. The server's parts are imported here only: a simulation needs no model."""
    from loadtest.capacity.measure import measure_costs
    from server.settings import load_settings

    settings = load_settings(bundle=arguments.bundle, cache_dir=arguments.cache_dir)
    return measure_costs(ROOT, settings, recordings, streams, server_options(arguments))


def read_speech(arguments: argparse.Namespace) -> tuple[list[Recording], list[StreamAudio]]:
    """Return the recordings to post, and live sessions."""
    recordings = read_recordings(arguments.data, CLIPS, MAX_RECORDINGS)
    speeches = clear_speech(read_recordings(arguments.data, CLIPS, MAX_STREAM_RECORDINGS))
    return recordings, [make_stream(speeches, arguments.stream_seconds, seed) for seed in range(STREAMS)]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the three commands."""
    parser = argparse.ArgumentParser(
        prog="loadtest.capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    measuring = commands.add_parser("measure", help="measure the stage costs on this machine")
    measuring.add_argument("--out", type=Path, default=Path("capacity_costs.json"), help="where to write them")
    measuring.set_defaults(command=measure_command)
    validating = commands.add_parser("validate", help="play six mixes and compare")
    add_results_flag(validating)
    validating.add_argument("--seconds", type=float, default=60.0, help="of each mix of files (default: %(default)g)")
    validating.set_defaults(command=validate_command)
    for each in (measuring, validating):
        add_data_flag(each)
        each.add_argument("--stream-seconds", type=float, default=25.0, help="of a live session (default: %(default)g)")
        add_server_flags(each)
    simulating = commands.add_parser("simulate", help="simulate what so many sessions and clients wait")
    simulating.add_argument("costs", type=Path, help="JSON that `measure` wrote")
    simulating.add_argument("--hardware", nargs="+", choices=["measured", *GPUS], default=["measured"], help="rows to simulate")
    simulating.add_argument("--shape", choices=sorted(SHAPES), default="base", help="model on the GPUs (default: %(default)s)")
    simulating.add_argument("--seconds", type=float, default=60.0, help="of simulated time (default: %(default)g)")
    simulating.add_argument("--limit-ms", type=float, default=1500.0, help="p95 at which the sweep of sessions stops")
    simulating.add_argument("--most-sessions", type=int, default=4096, help="largest number of live sessions")
    simulating.add_argument("--clients", type=int, nargs="*", default=[], help="numbers of clients in a closed loop")
    simulating.add_argument("--rates", type=float, nargs="*", default=[], help="files per second, by a Poisson process")
    simulating.add_argument("--audio-s", type=float, help="length of the files (default: all that were measured)")
    simulating.add_argument("--plot", type=Path, help="where to write the plot of the sweep")
    simulating.set_defaults(command=simulate_command)
    parser.epilog = "\n".join(each.format_usage() for each in (measuring, simulating, validating))
    return parser


def main() -> int:
    """Run one command; return the exit status."""
    arguments = build_parser().parse_args()
    try:
        status: int = arguments.command(arguments)
    except (ServerError, OSError, ValueError) as error:
        print(f"capacity: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
