"""One number of places or bytes, shared between clients without any limit that has to be chosen per client."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from server.errors import Overloaded

# A body, or a message of a WebSocket, gets on if at least this much of it comes within its timeout.
LEAST_PROGRESS_BYTES = 4096


class Shares:
    """Places that clients hold for a while.

    A client gets a place while it holds fewer than are free. One client alone thus gets half of the places, the next one half of
    the rest, and a client that holds none is let in as long as any place is free.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._held: Counter[str] = Counter()

    def take(self, client: str, count: int = 1) -> bool:
        """Give a client `count` places, if it may have them."""
        if not self.has_room(client, count):
            return False
        self._free -= count
        self._held[client] += count
        return True

    def has_room(self, client: str, count: int = 1) -> bool:
        """Return whether `take` would give `count` places now."""
        return self._held[client] + count <= self._free if client in self._held else count <= self._free

    def give_back(self, client: str, count: int = 1) -> None:
        """Free places that were taken."""
        self._free += count
        self._held[client] -= count
        if not self._held[client]:
            del self._held[client]


class Door:
    """Places, shared as `Shares` are, for requests that the engine does not know yet."""

    def __init__(self, places: int) -> None:
        self._shares = Shares(places)

    def check(self, client: str, retry_after_s: int) -> None:
        """Raise `Overloaded` if there is no place now: for a client that need not send its body then."""
        if not self._shares.has_room(client):
            raise _busy(retry_after_s)

    @contextlib.contextmanager
    def place(self, client: str, retry_after_s: int) -> Iterator[None]:
        """Hold a place for `client`. Raises `Overloaded`."""
        if not self._shares.take(client):
            raise _busy(retry_after_s)
        try:
            yield
        finally:
            self._shares.give_back(client)


def _busy(retry_after_s: int) -> Overloaded:
    return Overloaded("The server is busy; try again soon.", retry_after_s=retry_after_s)
