"""The memory of a simulated GPU: bounded, aligned, poisoned until written, and known by its addresses."""

import bisect
import itertools
import math
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from models.runtimes.cuda.device import OutOfDeviceMemoryError
from models.runtimes.cuda.gpu import ALIGNMENT_BYTES, aligned


@dataclass(frozen=True)
class Allocation:
    """Memory that is held. Addresses come back to use, but not `number`."""

    number: int
    address: int
    size_bytes: int


class Reservation:
    """Memory that is taken for as long as this object lives, without addresses of its own: a plan's weights."""


class DeviceMemory:
    """For several threads."""

    def __init__(self, total_bytes: int, name: str) -> None:
        self.total_bytes = total_bytes
        self._name = name
        self._taken: dict[int, Allocation] = {}
        self._starts: list[tuple[int, int]] = []
        """Addresses and numbers of the allocations that have one, by address."""
        self._numbers = itertools.count(1)
        self._freed: deque[int] = deque()
        """A finaliser may run in the midst of anything, so it only leaves a number here."""
        self._lock = threading.Lock()
        self._watcher = 0
        self._watched: list[int] = []

    def free_bytes(self) -> int:
        with self._lock:
            return self._free_bytes()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Poisoned memory, counted until its last view is gone. Raises `OutOfDeviceMemoryError`."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            self._require(size)
            memory = np.empty(aligned(size) + ALIGNMENT_BYTES, np.uint8)
            start = -memory.ctypes.data % ALIGNMENT_BYTES
            self._take(memory, memory.ctypes.data + start, size)
        tensor = torch.from_numpy(memory[start : start + size]).view(dtype).view(tuple(shape))
        poison(tensor)
        return tensor

    def reserve(self, size_bytes: int) -> Reservation:
        """Raises `OutOfDeviceMemoryError`."""
        with self._lock:
            self._require(size_bytes)
            reservation = Reservation()
            self._take(reservation, 0, size_bytes)
        return reservation

    def find(self, address: int) -> tuple[Allocation, int] | None:
        """The live allocation that an address lies in, and how many bytes of it begin there."""
        with self._lock:
            self._forget_freed()
            index = bisect.bisect(self._starts, address, key=itemgetter(0))
            if not index:
                return None
            found = self._taken[self._starts[index - 1][1]]
        rest_bytes = found.address + found.size_bytes - address
        return (found, rest_bytes) if rest_bytes > 0 else None

    def is_live(self, allocation: Allocation) -> bool:
        with self._lock:
            self._forget_freed()
            return allocation.number in self._taken

    @contextmanager
    def watch(self) -> Iterator[list[int]]:
        """Collect the numbers of allocations that this thread lets go of meanwhile. For one thread at a time."""
        self._watcher = threading.get_ident()
        try:
            yield self._watched
        finally:
            self._watcher = 0
            self._watched = []

    def _note_freed(self, number: int) -> None:
        if threading.get_ident() == self._watcher:
            self._watched.append(number)
        self._freed.append(number)

    def _take(self, holder: object, address: int, size_bytes: int) -> None:
        number = next(self._numbers)
        self._taken[number] = Allocation(number, address, size_bytes)
        if address:
            bisect.insort(self._starts, (address, number))
        weakref.finalize(holder, self._note_freed, number).atexit = False

    def _require(self, size_bytes: int) -> None:
        free = self._free_bytes()
        if aligned(size_bytes) > free:
            raise OutOfDeviceMemoryError(
                f"{self._name} has {free / 1e6:.1f} of {self.total_bytes / 1e6:.1f} MB free, "
                f"and {size_bytes / 1e6:.1f} MB are asked for"
            )

    def _free_bytes(self) -> int:
        self._forget_freed()
        return self.total_bytes - sum(aligned(each.size_bytes) for each in self._taken.values())

    def _forget_freed(self) -> None:
        while self._freed:
            gone = self._taken.pop(self._freed.popleft())
            if gone.address:
                self._starts.remove((gone.address, gone.number))


def poison(tensor: Tensor) -> None:
    """Fill it with what shows wherever it is read: NaN, or a large odd number."""
    if tensor.is_floating_point():
        tensor.fill_(math.nan)
    else:
        tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)
