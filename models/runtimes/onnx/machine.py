"""The free memory of this machine."""

import os
from pathlib import Path


def available_memory_bytes() -> int:
    """Return the memory that a new process can take without anything being swapped out."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
