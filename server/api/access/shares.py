"""One number of places or bytes, shared between clients without any limit that has to be chosen per client."""

from collections import Counter


class Shares:
    """Places that clients hold for a while.

    A client gets a place while it holds fewer than are free. One client alone thus gets half of the places, the next one half of
    the rest, and a client that holds none is let in as long as any place is free.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._held: Counter[str] = Counter()

    def take(self, client: str, count: int = 1) -> bool:
        """Give a client so many places, if it may have them."""
        if not self.has_room(client, count):
            return False
        self._free -= count
        self._held[client] += count
        return True

    def has_room(self, client: str, count: int = 1) -> bool:
        """Whether `take` would give them now."""
        return self._held[client] + count <= self._free if client in self._held else count <= self._free

    def give_back(self, client: str, count: int = 1) -> None:
        """Free places that were taken."""
        self._free += count
        self._held[client] -= count
        if not self._held[client]:
            del self._held[client]
