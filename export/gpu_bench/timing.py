"""Times of work on a GPU, and the tables that tell them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from export.markdown import table
from models.bundle.io import Bundle
from models.bundle.plans import find_plan
from models.runtimes.cuda.device import Device, Stream, plan_key
from models.runtimes.cuda.plan import Plan


@dataclass(frozen=True)
class Scale:
    """How much is measured. `batches` are (frames of an utterance, utterances) of the adapter; `vocabulary` cuts the table that
    the adapter's kernels score, None leaves it whole. `calls_in_graph` of an operator are timed together."""

    repeats: int = 50
    slots: int = 32
    prefill_tokens: tuple[int, ...] = (32, 128, 512)
    batches: tuple[tuple[int, int], ...] = ((125, 1), (125, 8), (125, 32))
    vocabulary: int | None = None
    calls_in_graph: int = 20


@dataclass(frozen=True)
class Section:
    """A table of the report."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        return f"## {self.title}\n\n{table(self.heading, self.rows)}\n"


@dataclass(frozen=True)
class Timing:
    """Of several runs, in milliseconds."""

    median_ms: float
    shortest_ms: float

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ({self.shortest_ms:.3f})"


def time_host(work: Callable[[], object], repeats: int) -> Timing:
    """Time work that returns when it is done. One run in ten, at least one, is a warm-up: it compiles and loads kernels."""
    for _ in range(max(1, repeats // 10)):
        work()
    times_ms = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    return Timing(median(times_ms), min(times_ms))


def time_enqueued(enqueue: Callable[[], object], stream: Stream, repeats: int) -> Timing:
    """Time work that is put on the stream, until the stream is done."""

    def work() -> None:
        enqueue()
        stream.synchronize()

    return time_host(work, repeats)


def load_plan(device: Device, bundle: Bundle, part: str) -> Plan:
    """Return the bundle's plan of a part for the device. Raises `PlanError`."""
    found = find_plan(bundle, part, plan_key(device))
    return Plan(device, bundle.path(found.file).read_bytes(), found.file)
