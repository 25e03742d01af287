"""Memory that was freed goes back to the system.

Batches of many sizes leave holes between what is kept, and the C library keeps holes for later: after thousands of sessions they
were larger than what was in use, though nothing leaked.
"""

import ctypes
from collections.abc import Callable

IDLE_S = 1.0
BUSY_S = 60.0


def return_free_memory() -> None:
    """Give the pages of the heap that hold nothing back to the system. Does nothing where the C library has no such function."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class MemoryReturn:
    """Decides when to give memory back: `IDLE_S` after work has ended, and every `BUSY_S` where it does not end."""

    def __init__(self, act: Callable[[], None] = return_free_memory) -> None:
        self._act = act
        # When there was work that memory was not given back after: first and last seen, by the monotonic clock.
        self._since_s: float | None = None
        self._busy_s = 0.0

    def look(self, is_busy: bool, now_s: float) -> None:
        """Note whether there is work now, and act if it is time to. Call it every second or more often."""
        if is_busy:
            self._since_s = now_s if self._since_s is None else self._since_s
            self._busy_s = now_s
        if self._since_s is None:
            return
        if now_s - self._busy_s >= IDLE_S:
            self._since_s = None
            self._act()
        elif now_s - self._since_s >= BUSY_S:
            self._since_s = now_s
            self._act()
