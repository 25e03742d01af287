"""The wall clock of the server's processes, which can be made to jump.

Python's own `time.time` and `time.time_ns` are replaced in each process as it starts; `datetime` and libraries in C keep the true
clock, and so do confined decoders, which get no environment. The monotonic clock does not jump: none does where a clock is set.
libfaketime would move all of them, but its 0.9.10 breaks `time.sleep` (EINVAL).
"""

import struct
from pathlib import Path

PROGRAM = '''
"""Moves the wall clock by what the file beside this one says."""

import mmap
import struct
import time
from pathlib import Path

with Path(__file__).with_name("offset").open("rb") as file:
    offset = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
true_time, true_time_ns = time.time, time.time_ns
time.time = lambda: true_time() + struct.unpack("<q", offset[:8])[0]
time.time_ns = lambda: true_time_ns() + 10**9 * struct.unpack("<q", offset[:8])[0]
'''


class Clock:
    """The clock of Python processes that are started with `variables`."""

    def __init__(self, folder: Path) -> None:
        """`folder` is for files of the clock alone."""
        (folder / "sitecustomize.py").write_text(PROGRAM, encoding="utf-8")
        self._offset = folder / "offset"
        self._offset.write_bytes(bytes(8))
        self.variables = {"PYTHONPATH": str(folder)}

    def be_wrong_by(self, seconds: int) -> None:
        """Let the clock be ahead by so much, or behind."""
        with self._offset.open("r+b") as file:
            file.write(struct.pack("<q", seconds))
