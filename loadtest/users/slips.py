"""A locust run that its own generator was too late for is void."""

from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from loadtest.live.checks import MAX_SLIP_P99_S, slip_complaint

VOID_STATUS = 1


def add_slip_option(parser: ArgumentParser) -> None:
    """Let a run be judged by another limit."""
    text = "p99 of the generator's slips above which a run is void (default: %(default)g)"
    parser.add_argument("--max-slip-ms", type=float, default=1000 * MAX_SLIP_P99_S, help=text)


class Slips:
    """How late the generator did what it had to do at a certain time; judged when locust quits."""

    def __init__(self, environment: Any) -> None:
        self._slips_s: list[float] = []
        self._environment = environment
        environment.events.quitting.add_listener(self._judge)

    def add(self, slips_s: Iterable[float]) -> None:
        """Seconds, one for each thing that was to be done."""
        self._slips_s.extend(slips_s)

    def _judge(self, **_kwargs: Any) -> None:
        if complaint := slip_complaint(self._slips_s, self._environment.parsed_options.max_slip_ms / 1000):
            print(f"VOID: {complaint}; its figures must not be quoted.")
            self._environment.process_exit_code = VOID_STATUS
