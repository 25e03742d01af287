"""A semaphore whose places are shared fairly between clients."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

from server.errors import Overloaded


@dataclass(frozen=True, eq=False)
class _Waiter:
    client: str
    granted: asyncio.Future[None]


class FairSemaphore:
    """`places` that clients hold for a while, and wait for in turn. Belongs to one event loop.

    A place goes to the client that holds the fewest, and among equals to the one whose last turn is the longest ago. Of several
    places the last free one is kept for a client that holds none, so that no client can hold all of them. A client that rests
    gets none. At most `max_waiting` requests wait; one more is refused, of the client that waits for the most places, the newest.
    """

    def __init__(self, places: int, max_waiting: int, refusal: str) -> None:
        """`refusal` is the message of the `Overloaded` that a request gets which may not wait."""
        self._places = self._free = places
        self._max_waiting = max_waiting
        self._refusal = refusal
        self._held: Counter[str] = Counter()
        self._waiters: list[_Waiter] = []
        # Of the clients that hold or wait for something.
        self._last_turns: dict[str, int] = {}
        self._turns = itertools.count(1)
        # When the clients that rest may hold a place again, by the event loop's clock.
        self._rested_at_s: dict[str, float] = {}

    @contextlib.asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Hold a place within the block. Raises as `acquire` does."""
        await self.acquire(client)
        try:
            yield
        finally:
            self.release(client)

    async def acquire(self, client: str) -> None:
        """Wait for a place, which `release` gives back. Raises `Overloaded` where too many wait."""
        waiter = _Waiter(client, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._grant_places()
        if len(self._waiters) > self._max_waiting:
            self._refuse_one()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                self.release(client)
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._forget_if_gone(client)

    def release(self, client: str) -> None:
        """Give back a place that the client holds."""
        self._held[client] -= 1
        self._free += 1
        self._grant_places()
        self._forget_if_gone(client)

    def rest(self, client: str, seconds: float) -> None:
        """Give the client no further place for this time, after the rests that it was given before."""
        loop = asyncio.get_running_loop()
        rested_at_s = self._rested_at_s[client] = max(loop.time(), self._rested_at_s.get(client, 0.0)) + seconds
        loop.call_at(rested_at_s, self._end_rest, client, rested_at_s)

    def _end_rest(self, client: str, rested_at_s: float) -> None:
        if self._rested_at_s.get(client) == rested_at_s:
            del self._rested_at_s[client]
            self._grant_places()

    def _grant_places(self) -> None:
        while (waiter := self._next_waiter()) is not None:
            self._waiters.remove(waiter)
            self._free -= 1
            self._held[waiter.client] += 1
            self._last_turns[waiter.client] = next(self._turns)
            waiter.granted.set_result(None)

    def _next_waiter(self) -> _Waiter | None:
        if self._free == 0:
            return None
        is_last = self._places > 1 and self._free == 1
        # Cancelled waiters are about to leave by themselves.
        waiters = [
            each
            for each in self._waiters
            if not (each.granted.done() or each.client in self._rested_at_s or (is_last and self._held[each.client]))
        ]
        return min(waiters, key=lambda each: (self._held[each.client], self._last_turns.get(each.client, 0)), default=None)

    def _refuse_one(self) -> None:
        waiting = Counter(each.client for each in self._waiters)
        most = max(waiting.values())
        refused = next(each for each in reversed(self._waiters) if waiting[each.client] == most)
        self._waiters.remove(refused)
        if not refused.granted.done():
            refused.granted.set_exception(Overloaded(self._refusal, retry_after_s=1))

    def _forget_if_gone(self, client: str) -> None:
        if self._held[client] == 0:
            del self._held[client]
            if not any(each.client == client for each in self._waiters):
                self._last_turns.pop(client, None)
