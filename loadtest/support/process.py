"""Processes that the benchmark starts, and what Linux has counted for each with its descendants."""

import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def process_tree(pid: int) -> list[int]:
    """Return a process and all its living descendants; none where it has ended."""
    try:
        children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(each for child in children for each in process_tree(int(child)))]


def find_processes(pid: int, module: str) -> list[int]:
    """Return the descendants of a process that run a Python module."""
    found = []
    for each in process_tree(pid)[1:]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if module.encode() in Path(f"/proc/{each}/cmdline").read_bytes():
                found.append(each)
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of the tree, descendants that were waited for included; in steps of 10 ms per process."""
    ticks = 0
    for each in process_tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            ticks += sum(_read_ticks(each))
    return ticks / TICKS_PER_S


def own_cpu_seconds(pid: int) -> float:
    """CPU time of one process without its descendants, in steps of 10 ms. Raises `FileNotFoundError` where it has ended."""
    return sum(_read_ticks(pid)[:2]) / TICKS_PER_S


def _read_ticks(pid: int) -> list[int]:
    """Return the ticks of a process in its own code and in the system's, and those of its descendants that were waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(field) for field in fields[11:15]]


def peak_memory_mib(pid: int) -> float:
    """Return the sum of each process's peak resident memory; pages that several share count in each."""
    kib = 0
    for each in process_tree(pid):
        try:
            kib += int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{each}/status").read_text())[0])
        except (FileNotFoundError, ProcessLookupError, IndexError):
            continue
    return kib / 1024


def machine_busy_s() -> float:
    """CPU time that all processes of the machine together have used since it started, stolen time included."""
    user, nice, system, _idle, _wait, interrupt, soft_interrupt, steal = _read_machine_ticks()
    return (user + nice + system + interrupt + soft_interrupt + steal) / TICKS_PER_S


def machine_niced_s() -> float:
    """CPU time since the machine started of all processes whose priority was lowered, in their own code."""
    return _read_machine_ticks()[1] / TICKS_PER_S


def _read_machine_ticks() -> list[int]:
    """Return the first eight counters of `/proc/stat`: user, nice, system, idle, wait, interrupt, soft interrupt, stolen."""
    return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


class OthersWatch:
    """How busy everything but this process and its descendants keeps the machine, from its making on."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._others_s = self._now_s()
        self._niced_s = machine_niced_s()

    @staticmethod
    def _now_s() -> float:
        return machine_busy_s() - cpu_seconds(os.getpid())

    def share(self) -> float:
        """Return the share of all cores that others used, 0 to 1."""
        return self._share_of_cores(self._now_s() - self._others_s)

    def share_at_low_priority(self) -> float:
        """Return the share of all cores that work of a lowered priority used, which gives way to everything else."""
        return self._share_of_cores(machine_niced_s() - self._niced_s)

    def _share_of_cores(self, cpu_s: float) -> float:
        wall_s = time.monotonic() - self._started_s
        return max(0.0, cpu_s / (wall_s * (os.cpu_count() or 1)))


class PeerError(RuntimeError):
    """A peer did not start or ended early."""


class LinePeer:
    """A process that answers one JSON object per line with another. A context manager; its end closes the process."""

    def __init__(self, command: list[str], folder: Path) -> None:
        """Start it and wait until it has loaded. Raises `PeerError`."""
        # A file: a pipe that is not read would fill up and stop the peer.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._name = " ".join(command[1:3])
        self.pid = self._process.pid
        try:
            self._read()
        except PeerError:
            self.close()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises `PeerError` where it died."""
        if self._process.stdin is None:
            raise PeerError(self._name)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._process.wait()
            raise self._ended()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _ended(self) -> PeerError:
        self._errors.seek(0)
        return PeerError(f"{self._name} ended: {self._errors.read()[-2000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process: by closing its input, and by force where that does not help."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()
