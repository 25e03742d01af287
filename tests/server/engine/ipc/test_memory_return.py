"""The engine's process gives memory that was freed back to the system."""

import ctypes
import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from server.engine.ipc.main import TRIM_BUSY_S, TRIM_IDLE_S, MemoryReturn, return_free_memory

PAGE_BYTES = 4096
BLOCK_BYTES, BLOCKS = 64 * 1024, 640
STEP_S = 0.25


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def test_holes_between_what_is_kept_go_back() -> None:
    c = ctypes.CDLL(None)
    c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    c.free.argtypes = [ctypes.c_void_p]
    blocks = [c.malloc(BLOCK_BYTES) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK_BYTES)
    # The last stays, so that the heap cannot simply end sooner.
    for block in blocks[:-1]:
        c.free(block)
    before_mib = resident_mib()
    return_free_memory()
    after_mib = resident_mib()
    c.free(blocks[-1])
    assert before_mib - after_mib > 0.5 * BLOCKS * BLOCK_BYTES / 2**20


def moments(busy: list[bool]) -> list[float]:
    """Return the moments at which memory goes back, where each look tells whether there is work."""
    acted: list[float] = []
    now_s = 0.0
    memory = MemoryReturn(lambda: acted.append(now_s))
    for is_busy in busy:
        memory.look(is_busy, now_s)
        now_s += STEP_S
    return acted


def test_once_after_work() -> None:
    assert moments([False] * 20 + [True] * 4 + [False] * 400) == [20 * STEP_S + 3 * STEP_S + TRIM_IDLE_S]


def test_now_and_then_during_work_that_does_not_end() -> None:
    looks = int(3.5 * TRIM_BUSY_S / STEP_S)
    assert moments([True] * looks) == [TRIM_BUSY_S, 2 * TRIM_BUSY_S, 3 * TRIM_BUSY_S]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400)), max_size=8))
def test_all_work_is_followed_by_it(stretches: list[tuple[bool, int]]) -> None:
    busy = [is_busy for is_busy, looks in stretches for _ in range(looks)]
    acted = moments([*busy, *[False] * 8])
    assert all(later - earlier >= TRIM_IDLE_S for earlier, later in itertools.pairwise(acted))
    if True in busy:
        last_s = (len(busy) - 1 - busy[::-1].index(True)) * STEP_S
        assert acted[-1] >= last_s + TRIM_IDLE_S
    else:
        assert acted == []
