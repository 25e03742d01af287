"""Thinbridge on a Ray cluster: edges that speak HTTP and WebSocket, and engine replicas that Ray Serve looks after.

    python -m deploy.ray serve --engines 2 --threads 1                    # a cluster on this machine, two engines, one edge
    python -m deploy.ray serve --address auto --engines 2-8               # on a cluster that runs; scaled by predicted wait
    python -m deploy.ray edge --address auto --port 8001                  # one more edge for the same engines
    python -m deploy.ray deploy --address auto --engines 2 --model NAME   # new model or settings: a rolling update
    python -m deploy.ray status --address auto

Settings are those of `thinbridge serve` (docs/settings.md), from THINBRIDGE_* variables and the flags here. Needs the `ray`
extra. docs/scale_out.md says when this is worth it.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from deploy.ray.engine import RayEngine
from deploy.ray.scaling import Fleet
from models.bundle.io import BundleError, open_bundle
from server.api.lifecycle import ListenError, base_url, listen, serve
from server.cli import CommandError, get_bundle
from server.logs import configure_logging
from server.registry.registry import ModelSource, no_catalogue
from server.settings import Settings, SettingsError, load_settings

FLAGS = (
    *("host", "port", "insecure", "bundle", "cache_dir"),
    *("threads", "slots", "queue_limit", "live_sessions", "engine", "device", "log_level"),
)


def serve_command(options: argparse.Namespace, settings: Settings) -> int:
    """Deploy engines and serve as an edge; at the end the engines stop too, unless they run on a cluster that was joined."""
    from deploy.ray.cluster import deploy_engines

    bundle = get_bundle(settings)
    fleet = read_fleet(options, settings)
    return serve_edge(deploy_engines(options.application, bundle, settings, fleet), bundle, settings, fleet)


def edge_command(options: argparse.Namespace, settings: Settings) -> int:
    """Serve as one more edge for engines that run."""
    from deploy.ray.cluster import find_engines

    return serve_edge(find_engines(options.application), get_bundle(settings), settings, read_fleet(options, settings))


def deploy_command(options: argparse.Namespace, settings: Settings) -> int:
    """Deploy engines, or update those that run."""
    from deploy.ray.cluster import deploy_engines, describe_application

    deploy_engines(options.application, get_bundle(settings), settings, read_fleet(options, settings))
    print(describe_application(options.application))
    return 0


def status_command(options: argparse.Namespace, _settings: Settings) -> int:
    """Print the state of the engines."""
    from deploy.ray.cluster import describe_application

    print(describe_application(options.application))
    return 0


def serve_edge(handle: Any, bundle: Path, settings: Settings, fleet: Fleet) -> int:
    """Serve HTTP and WebSocket until SIGTERM; return the exit status."""
    with listen(settings) as listener:
        print(f"Thinbridge's edge at {base_url(listener, settings)}", flush=True)
        build = partial(RayEngine, handle, open_bundle(bundle).manifest)
        return serve([ModelSource(build(), build)], no_catalogue, edge_settings(settings, fleet.most), listener)


def edge_settings(settings: Settings, engines: int) -> Settings:
    """Return the settings of an edge whose doors are as wide as those of so many engines together."""
    places = engines * (settings.slots + settings.queue_limit)
    wider = {"queue_limit": places - settings.slots, "live_sessions": engines * settings.live_sessions}
    return settings.model_copy(update=wider)


def read_fleet(options: argparse.Namespace, settings: Settings) -> Fleet:
    """Return the fleet of `--engines`, a number or two with a hyphen. Raises `SettingsError`."""
    least, _, most = options.engines.partition("-")
    try:
        fleet = Fleet(int(least), int(most or least), options.cpus_per_engine, 0.0 if settings.device == "cpu" else 1.0)
    except ValueError:
        raise SettingsError("--engines takes a number, or a range such as 2-8.") from None
    if not 1 <= fleet.least <= fleet.most:
        raise SettingsError("--engines takes at least 1, and a range from the smaller number to the larger.")
    return fleet


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the commands."""
    parser = argparse.ArgumentParser(prog="deploy.ray", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, is_joining in (
        ("serve", serve_command, False),
        ("edge", edge_command, True),
        ("deploy", deploy_command, True),
        ("status", status_command, True),
    ):
        each = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        each.set_defaults(command=command)
        each.add_argument("--address", required=is_joining, help="the cluster to join, `auto` on its machines")
        each.add_argument("--application", default="thinbridge", help="name of the engines' application (one for each model)")
        if command is not status_command:
            each.add_argument("--engines", default="2", help="replicas, or a range such as 2-8 that is scaled by predicted wait")
            each.add_argument("--cpus-per-engine", type=float, default=1.0, help="of Ray's CPUs (default: %(default)g)")
        for flag in FLAGS if command is not status_command else ():
            names = ["--model", "--bundle"] if flag == "bundle" else ["--" + flag.replace("_", "-")]
            action: dict[str, Any] = {"action": "store_true"} if flag == "insecure" else {}
            each.add_argument(*names, dest=flag, default=None, help=Settings.model_fields[flag].description, **action)
    parser.epilog = "\n".join(each.format_usage() for each in commands.choices.values())
    return parser


def main() -> int:
    """Run one command; return the exit status."""
    options = build_parser().parse_args()
    try:
        settings = load_settings(**{name: getattr(options, name, None) for name in FLAGS})
        configure_logging(settings.log_level.upper())
        # After the options are understood: importing Ray takes seconds.
        from deploy.ray.cluster import join_cluster, leave_cluster

        join_cluster(options.address)
        try:
            status: int = options.command(options, settings)
        finally:
            leave_cluster(stop=options.address is None)
    except ModuleNotFoundError as error:
        print(f"thinbridge: {error.name} is missing: pip install -c constraints.txt -e '.[ray]'.", file=sys.stderr)
        return 2
    except (SettingsError, CommandError, BundleError, ListenError, RuntimeError, ConnectionError) as error:
        print(f"thinbridge: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
