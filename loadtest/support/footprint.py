"""Resources that the processes of a server hold: memory, open files, threads; now, or watched over time."""

import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from loadtest.support.process import cpu_seconds, process_tree

ANONYMOUS = re.compile(r"Rss(?:Anon|Shmem):\s+(\d+) kB")


@dataclass(frozen=True)
class Footprint:
    """One process. `name` is the module that it runs.

    Anonymous memory is what the process wrote itself. Pages of files, such as libraries, come and go as the kernel wants it.
    """

    pid: int
    name: str
    anonymous_mib: float
    files: int
    threads: int


def footprints(pid: int) -> list[Footprint]:
    """Return a process and its living descendants, itself first."""
    found = []
    for each in process_tree(pid):
        folder = Path(f"/proc/{each}")
        try:
            anonymous_mib = sum(map(int, ANONYMOUS.findall((folder / "status").read_text()))) / 1024
            files, threads = (sum(1 for _ in (folder / kind).iterdir()) for kind in ("fd", "task"))
            found.append(Footprint(each, _name(folder), anonymous_mib, files, threads))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _name(folder: Path) -> str:
    command = (folder / "cmdline").read_bytes().decode(errors="replace")
    module = re.search(r"\0-m\0([\w.]+)|\0-c\0.*?from ([\w.]+) import", command)
    return module[1] or module[2] if module else Path(command.split("\0")[0]).name


def total(held: Iterable[Footprint]) -> dict[str, float]:
    """Sums over processes, and how many there are."""
    held = list(held)
    return {
        "processes": len(held),
        "files": sum(each.files for each in held),
        "threads": sum(each.threads for each in held),
        "anonymous_mib": round(sum(each.anonymous_mib for each in held), 2),
    }


@dataclass(frozen=True)
class Reading:
    """A moment of the monotonic clock: anonymous memory of the processes by name, and the CPU time that all of them have used."""

    moment_s: float
    anonymous_mib: dict[str, float]
    cpu_s: float

    @property
    def total_mib(self) -> float:
        return sum(self.anonymous_mib.values())


class Watch:
    """A context manager that takes a reading of a server's processes every so often until it ends, and one at each end."""

    def __init__(self, pid: int, period_s: float) -> None:
        self.readings: list[Reading] = []
        self._pid, self._period_s = pid, period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def read(self) -> Reading:
        """Take a reading now."""
        anonymous_mib: dict[str, float] = {}
        for each in footprints(self._pid):
            anonymous_mib[each.name] = anonymous_mib.get(each.name, 0.0) + each.anonymous_mib
        reading = Reading(time.monotonic(), anonymous_mib, cpu_seconds(self._pid))
        self.readings.append(reading)
        return reading

    def peak(self) -> Reading:
        """Return the reading with the most memory."""
        return max(self.readings, key=lambda reading: reading.total_mib)

    def _watch(self) -> None:
        while not self._stopping.wait(self._period_s):
            self.read()

    def __enter__(self) -> Self:
        self.read()
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._thread.join()
        self.read()
