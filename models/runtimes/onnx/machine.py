"""The processor's features, the free memory and the usable cores of this machine, or of the container around this process."""

import math
import os
import platform
from functools import cache
from pathlib import Path

FILES = Path("/")
GROUPS = Path("sys/fs/cgroup")


def processor_features(files: Path = FILES) -> set[str]:
    """Return the names that the kernel gives to the processor's features. `files` is the root of files."""
    lines = (line.partition(":") for line in _read(files / "proc/cpuinfo").splitlines())
    return next((set(value.split()) for name, _, value in lines if name.strip() in ("flags", "Features")), set())


@cache
def adds_byte_products_exactly(architecture: str = platform.machine(), files: Path = FILES) -> bool:
    """Return whether the processor sums products of unsigned and signed bytes in 32 bits: VNNI, or any that is not x86.

    Without it, the quickest instruction of x86 adds two products in 16 bits, which 8-bit weights can overflow.
    """
    return architecture != "x86_64" or not processor_features(files).isdisjoint({"avx512_vnni", "avx_vnni"})


def available_memory_bytes(files: Path = FILES) -> int:
    """Return the memory that a new process can take without anything being swapped out, within the limits of its container.

    `files` is the root of files.
    """
    lines = (line.split() for line in _read(files / "proc/meminfo").splitlines())
    free = [int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"]
    free = free or [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    return max(0, min(free + [left for folder in _group_folders(files) if (left := _memory_left(folder)) is not None]))


def usable_cores(files: Path = FILES) -> int:
    """Return how many cores this process can keep busy: those it may run on, or fewer by the quota of its container.

    A runtime with a thread for every core of the host would be stopped by the kernel for most of each period.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota(files)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(files: Path = FILES) -> float | None:
    """Return how many cores' time control groups allow this process; None without a limit. `files` is the root of files."""
    limits = [_version_2_quota(folder) for folder in _group_folders(files)]
    limits.append(_version_1_quota(files / GROUPS / "cpu"))
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _group_folders(files: Path) -> list[Path]:
    """Return the folders of this process's control group and of all above it; within a container there is only the root."""
    root = files / GROUPS
    group = next((line[3:] for line in _read(files / "proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    folder = root / group.strip().lstrip("/")
    return [each for each in (folder, *folder.parents) if each == root or root in each.parents]


def _memory_left(folder: Path) -> int | None:
    """Return what a control group may still take, with what its files' pages would give back; None without a limit."""
    limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
    if not limit.isdecimal() or not used.isdecimal():
        return None
    figures = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    return int(limit) - int(used) + int(figures.get("inactive_file", 0))


def _version_2_quota(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _version_1_quota(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
