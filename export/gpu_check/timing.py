"""What something takes by the clock, as a host waits for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from models.runtimes.cuda.device import Stream

WARM_UP_SHARE = 10
"""One run in so many, and at least one, before those that count: kernels are compiled and loaded in the first."""


@dataclass(frozen=True)
class Timing:
    """In milliseconds."""

    median_ms: float
    shortest_ms: float

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ({self.shortest_ms:.3f})"


def time_host(work: Callable[[], object], repeats: int) -> Timing:
    """Of work that comes back when it is done."""
    for _ in range(max(1, repeats // WARM_UP_SHARE)):
        work()
    times_ms = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    return Timing(median(times_ms), min(times_ms))


def time_enqueued(enqueue: Callable[[], object], stream: Stream, repeats: int) -> Timing:
    """Of work that is put on the stream, until the stream is done."""

    def work() -> None:
        enqueue()
        stream.synchronize()

    return time_host(work, repeats)
