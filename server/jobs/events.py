"""The events of one request, from the engine's thread to the event loop."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from server.engine.types.events import Delta, Done, Event, Failed, TokenLogprob


class ResultFuture:
    """The end of one request. Belongs to the event loop on which it was made; only `put` is for other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._terminal: asyncio.Future[Done | Failed] = self._loop.create_future()
        self.first_text_s: float | None = None

    def put(self, event: Event) -> None:
        """Take an event; called on the engine's thread."""
        if isinstance(event, Delta):
            self.first_text_s = self.first_text_s or time.perf_counter()
        else:
            self._loop.call_soon_threadsafe(self._set_terminal, event)

    def _set_terminal(self, event: Done | Failed) -> None:
        if not self._terminal.done():
            self._terminal.set_result(event)

    async def wait(self) -> Done:
        """Return the answer. Raises the error of a `Failed`."""
        event = await self._terminal
        if isinstance(event, Failed):
            raise event.error
        return event


class EventQueue:
    """The events of one request until the event loop takes them, however late; the engine never waits.

    Belongs to the event loop on which it was made; only `put` is for other threads. The queue holds at most one answer.
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
        """When the first text came, by `time.perf_counter`."""
        return self.arrivals_s[0] if self.arrivals_s else None

    def put(self, event: Event) -> None:
        """Append an event; called on the engine's thread."""
        self._events.append(event)
        if not isinstance(event, Delta):
            self.ended = True
        elif event.text:
            self.arrivals_s.append(time.perf_counter())
        # A reader that is being woken takes this event too.
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._changed.set)

    async def wait(self) -> None:
        """Return once there is an event to take."""
        await self._changed.wait()

    def raise_failure(self) -> None:
        """Raise the error of a request that failed before any other event."""
        if self._events and isinstance(first := self._events[0], Failed):
            raise first.error

    def take_all(self) -> tuple[str, Sequence[TokenLogprob], Done | Failed | None]:
        """Return the text and its tokens since the last call, and the terminal event if it has come."""
        self._changed.clear()
        # Reset before the events are taken: an event that comes from here on wakes the reader again.
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
