"""The streams and graphs of a simulated GPU: work stays in a queue until a caller waits for it.

So the host reads poison, or what was there before, wherever it forgot to synchronise, and one stream does where it forgot to
wait for another.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable
from weakref import WeakValueDictionary

from models.runtimes.cuda.device import DeviceError, Stream
from tests.support.simulated_gpu.memory import DeviceMemory

Work = Callable[[], None]
Clock = dict[int, int]
"""By the handles of streams, how much of their work came before."""


class CurrentDevice(threading.local):
    """How many times this thread has made the GPU its current one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.depth = 0

    def require(self) -> None:
        """CUDA would go to another GPU. Raises `DeviceError`."""
        if not self.depth:
            raise DeviceError(f"{self._name} is not the thread's current device")


class Streams:
    """All of a GPU's. One piece of work runs at a time, on the thread that waits for it."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self.running = threading.RLock()
        self.lost = ""
        """Why nothing is done any more, where that is so."""
        self.done: Clock = {}
        """How much of each stream's work is over, of those that are gone too."""
        # No handle is used again, and none is another GPU's.
        self._handles = itertools.count(id(self) << 16)
        self._by_handle: WeakValueDictionary[int, SimulatedStream] = WeakValueDictionary()

    def create(self) -> "SimulatedStream":
        stream = SimulatedStream(self, next(self._handles))
        self._by_handle[stream.handle] = stream
        return stream

    def get(self, handle: int) -> "SimulatedStream":
        """Raises `DeviceError` where the handle is none of this GPU's."""
        stream = self._by_handle.get(handle)
        if stream is None:
            raise DeviceError(f"{handle} is no stream of this GPU")
        return stream


class SimulatedStream:
    """For one thread, and for others that wait for its work.

    Work that raises fails the stream, as on a GPU: what is queued behind it is dropped. Unlike on a GPU, where no later call
    would succeed, the stream works again once `synchronize` has raised.
    """

    def __init__(self, streams: Streams, handle: int) -> None:
        self.handle = handle
        self.before: Clock = {}
        """The work that was sure to come before the present piece."""
        self._streams = streams
        streams.done[handle] = 0
        self._queue: deque[tuple[Work, Clock]] = deque()
        self._queued = 0
        self._awaited: Clock = {}
        self._failure: Exception | None = None
        self._recorded: list[Work] | None = None

    @property
    def doing(self) -> int:
        """The number of the piece of work that is being done, from 1."""
        return self._streams.done[self.handle] + 1

    @property
    def is_capturing(self) -> bool:
        return self._recorded is not None

    def enqueue(self, work: Work) -> None:
        if self._recorded is not None:
            self._recorded.append(work)
            return
        # Without the lock: only this thread adds to the queue, and work that runs meanwhile may take long.
        self._queue.append((work, self._before_next()))
        self._queued += 1

    def synchronize(self) -> None:
        if self.is_capturing:
            raise DeviceError("a stream cannot be synchronised while a graph is captured from it")
        with self._streams.running:
            try:
                self._run(self._queued)
            finally:
                self._failure = None

    def wait_for(self, other: Stream) -> None:
        if not isinstance(other, SimulatedStream):
            raise TypeError("a simulated stream waits for simulated ones only")
        if self.is_capturing or other.is_capturing:
            raise DeviceError("streams cannot wait for each other while a graph is captured from one of them")
        awaited = other._queued
        self._awaited = _later(self._awaited, other._before_next())
        self.enqueue(lambda: other._run(awaited))

    def begin_capture(self) -> None:
        if self.is_capturing:
            raise DeviceError("a graph is being captured from the stream already")
        self._recorded = []

    def end_capture(self) -> list[Work]:
        recorded, self._recorded = self._recorded or [], None
        return recorded

    def _before_next(self) -> Clock:
        """All that is sure to come before what is queued next: what was waited for, by streams and by the host, and its own."""
        return _later(_later(self._awaited, self._streams.done), {self.handle: self._queued})

    def _run(self, count: int) -> None:
        """Do its work up to piece `count`."""
        while self._streams.done[self.handle] < count:
            work, self.before = self._queue.popleft()
            if self._streams.lost:
                self._failure = DeviceError(self._streams.lost)
            if self._failure is None:
                try:
                    work()
                except Exception as error:
                    self._failure = error
            # A GPU's queue does not keep memory: other work could get it before this work is done.
            with self._streams.memory.watch() as let_go:
                del work
                if let_go and self._failure is None:
                    self._failure = DeviceError(
                        "device memory was let go before the work that uses it was done: keep it until then"
                    )
            self._streams.done[self.handle] += 1
        if isinstance(self._failure, DeviceError):
            raise self._failure
        if self._failure is not None:
            raise DeviceError(f"work on the GPU failed: {type(self._failure).__name__}: {self._failure}") from self._failure


class SimulatedGraph:
    """The pieces of work that were captured; they run again in that order."""

    def __init__(self, stream: SimulatedStream, recorded: list[Work]) -> None:
        self._stream = stream
        self._recorded = recorded

    def replay(self) -> None:
        for work in self._recorded:
            self._stream.enqueue(work)


def _later(first: Clock, second: Clock) -> Clock:
    # A copy first: another thread may make a stream meanwhile.
    later = dict(first)
    for handle, count in dict(second).items():
        later[handle] = max(later.get(handle, 0), count)
    return later
