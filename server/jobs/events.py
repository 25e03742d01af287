"""From the engine's thread to the event loop: the events of one request."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from server.engine.types.events import Delta, Done, Event, Failed, TokenLogprob


class ResultFuture:
    """Waits for the end of one request. Belongs to the event loop that it was made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Done | Failed] = self._loop.create_future()
        self.first_text_s: float | None = None

    def deliver(self, event: Event) -> None:
        """For the engine's thread."""
        if isinstance(event, Delta):
            self.first_text_s = self.first_text_s or time.perf_counter()
        else:
            self._loop.call_soon_threadsafe(self._end, event)

    def _end(self, event: Done | Failed) -> None:
        if not self._ended.done():
            self._ended.set_result(event)

    async def wait(self) -> Done:
        """The answer. Raises the error of a `Failed`."""
        event = await self._ended
        if isinstance(event, Failed):
            raise event.error
        return event


class EventQueue:
    """Collects what comes of one request until the event loop takes it, however late that is; the engine never waits.

    Belongs to the event loop that it was made on. It holds no more than one answer.
    """

    def __init__(self) -> None:
        self.arrivals_s: list[float] = []
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._waking = False

    @property
    def first_text_s(self) -> float | None:
        """When the first text came."""
        return self.arrivals_s[0] if self.arrivals_s else None

    def deliver(self, event: Event) -> None:
        """For the engine's thread."""
        self._events.append(event)
        if not isinstance(event, Delta):
            self.ended = True
        elif event.text:
            self.arrivals_s.append(time.perf_counter())
        # Whoever is being woken takes this event too.
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._changed.set)

    async def wait(self) -> None:
        """Return once there is something to take."""
        await self._changed.wait()

    def raise_failure(self) -> None:
        """Raises the error of a request that failed before anything else came."""
        if self._events and isinstance(first := self._events[0], Failed):
            raise first.error

    def take(self) -> tuple[str, Sequence[TokenLogprob], Done | Failed | None]:
        """The text and its tokens since the last call, and the end where it has come."""
        self._changed.clear()
        # Before the events are taken: whatever comes from here on wakes again.
        self._waking = False
        texts: list[str] = []
        logprobs: list[TokenLogprob] = []
        terminal: Done | Failed | None = None
        while self._events:
            event = self._events.popleft()
            if isinstance(event, Delta):
                texts.append(event.text)
                logprobs += event.logprobs
            else:
                terminal = event
        return "".join(texts), logprobs, terminal
