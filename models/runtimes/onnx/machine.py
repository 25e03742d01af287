"""What this machine has: memory that is free."""

import os
from pathlib import Path


def available_memory_bytes() -> int:
    """What a new process can have without anything being swapped out."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
