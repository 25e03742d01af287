"""A locust run that its own generator was too late for is void."""

from collections.abc import Iterable
from typing import Any

from loadtest.live.checks import slip_complaint

VOID_STATUS = 1


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
        if complaint := slip_complaint(self._slips_s):
            print(f"VOID: {complaint}; its figures must not be quoted.")
            self._environment.process_exit_code = VOID_STATUS
