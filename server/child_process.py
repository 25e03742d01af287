"""Confined child processes: one Python module each, asked and answered over stdin and stdout."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from typing import Self

from server.confined_child import READY

START_TIMEOUT_S = 60.0
PIPE_BUFFER_BYTES = 2**20
CPU_LIMIT_SIGNALS = (signal.SIGPROF, signal.SIGXCPU)
CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)


class ChildFailed(Exception):
    """A child process ended, stayed silent for too long or broke its protocol. The message says which."""


class ChildProcess:
    """A child process that runs `module` and has said that it is ready. Belongs to one event loop.

    The module calls `confine` and then `announce_ready` of `server.confined_child`. The child has a session of its own, so a
    terminal's Ctrl-C reaches only the parent, and ends with the thread that started it. Of the environment it gets the import
    path alone.
    """

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, module: str, *arguments: str) -> Self:
        """Start a child and wait until it is ready. Raises `ChildFailed` where it cannot be started."""
        environment = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "OPENBLAS_NUM_THREADS": "1"}
        try:
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", module, *arguments],
                stdin=PIPE,
                stdout=PIPE,
                env=environment,
                limit=PIPE_BUFFER_BYTES,
                start_new_session=True,
            )
        except OSError as error:
            raise ChildFailed(f"{module} cannot be started: {error.strerror}") from None
        if process.stdout is None or process.stdin is None:
            raise ChildFailed(f"{module} has no pipes")
        child = cls(process, process.stdout, process.stdin)
        try:
            hello = await child.read(len(READY), START_TIMEOUT_S)
            if hello != READY:
                raise ChildFailed(f"{module} answered before it was ready")
        except BaseException:
            child.kill()
            await child.wait()
            raise
        return child

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def reached_cpu_limit(self) -> bool:
        """Whether it ended because it used more CPU time than it set itself."""
        return -(self._process.returncode or 0) in CPU_LIMIT_SIGNALS

    @property
    def crashed(self) -> bool:
        """Whether it ended by a fault of its own code, such as too little memory."""
        status = self._process.returncode or 0
        return status > 0 or -status in CRASH_SIGNALS

    def write(self, *parts: bytes | memoryview) -> None:
        """Send bytes without waiting. If the child is gone they are dropped, and the next `read` says so."""
        # uvloop raises where asyncio drops the bytes.
        with contextlib.suppress(RuntimeError):
            for part in parts:
                self._writer.write(part)

    async def read(self, count: int, timeout_s: float) -> bytes:
        """Return the next `count` bytes, after all that was written has gone out. Raises `ChildFailed`."""
        async with self._answering(timeout_s):
            return await self._reader.readexactly(count)

    async def read_line(self, timeout_s: float) -> bytes:
        """Return the next line with its end, as `read` does."""
        async with self._answering(timeout_s):
            return await self._reader.readuntil()

    def kill(self) -> None:
        """Have the process end, whatever it is doing."""
        # Not by `Process.kill`: on asyncio's own loop it may take the exit status away from the thread that waits for it, and the
        # status is then reported as 255.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process_id, signal.SIGKILL)

    async def wait(self) -> str:
        """Return how the process ended, once it has. Its pipes are closed then."""
        await self._process.wait()
        # This fails while another task reads, which then meets the end of the pipe and closes it.
        with contextlib.suppress(RuntimeError):
            await self._process.communicate()
        return describe_exit(self._process.returncode)

    @contextlib.asynccontextmanager
    async def _answering(self, timeout_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s):
                await self._writer.drain()
                yield
        except TimeoutError:
            raise ChildFailed(f"it did not answer within {timeout_s:g} s") from None
        except (OSError, EOFError, RuntimeError, asyncio.LimitOverrunError):
            raise ChildFailed("it closed its pipe") from None


def describe_exit(status: int | None) -> str:
    """Return how a process with this return code ended, in words."""
    if status is None:
        return "it cannot be killed"
    return f"exit status {status}" if status >= 0 else f"signal {-status} ({signal.strsignal(-status)})"
