"""Audio decoding in warm child processes, so that hostile bytes can neither crash, hang nor exhaust the server.

A child that dies or exceeds its time is killed and replaced, and its request is answered as undecodable. There is no
in-process fallback: with no child alive, requests wait for one and then fail.
"""

import asyncio
import contextlib
import logging
import os
import struct
import sys
from asyncio.subprocess import PIPE, Process
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from server.audio import AudioLimits
from server.decode_worker import READY, REPLY_HEADER, REQUEST_HEADER, STATUS_SAMPLES
from server.errors import AudioTooLong, AudioTooShort, InvalidAudio, NotReady, Overloaded, ServeError, UndecodableAudio

logger = logging.getLogger(__name__)

ERRORS: dict[str, type[ServeError]] = {kind.code: kind for kind in (AudioTooShort, AudioTooLong, InvalidAudio, UndecodableAudio)}
MAX_MESSAGE_BYTES = 1024
START_TIMEOUT_S = 60.0
RESTART_PAUSE_S = 1.0
PIPE_BUFFER_BYTES = 2**20


Result = TypeVar("Result")


class WorkerError(Exception):
    """The child died, hung or spoke nonsense."""


class DecodePool:
    """A fixed number of decode processes. Belongs to one event loop; `start` before use, `close` after."""

    def __init__(self, workers: int, limits: AudioLimits, *, timeout_s: float, memory_bytes: int, max_waiting: int) -> None:
        self.limits = limits
        self.restarts = 0
        self._workers = workers
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._max_waiting = max_waiting
        self._waiting = 0
        self._idle: asyncio.LifoQueue[Process] = asyncio.LifoQueue()
        self._processes: set[Process] = set()
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False

    @property
    def process_ids(self) -> set[int]:
        """The children that live now."""
        return {process.pid for process in self._processes}

    async def start(self) -> None:
        """Start every child and wait until each is warm. Raises `WorkerError` where one cannot run here."""
        try:
            for process in await asyncio.gather(*(self._spawn() for _ in range(self._workers))):
                self._idle.put_nowait(process)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Kill the children; nothing may be decoded afterwards."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._kill(process) for process in list(self._processes)))

    async def decode(self, data: bytes) -> npt.NDArray[np.float32]:
        """Mono samples at the pool's rate. Raises the errors of `decode_audio`, `Overloaded`, or `NotReady` with no child."""
        if self._waiting >= self._max_waiting:
            raise Overloaded("Too many requests are waiting for their audio to be decoded; try again soon.", retry_after_s=1)
        # A client that leaves must not cost a child: its decode is short and bounded, and runs to its end.
        return await asyncio.shield(self._track(asyncio.create_task(self._decode(data))))

    async def _decode(self, data: bytes) -> npt.NDArray[np.float32]:
        self._waiting += 1
        try:
            process = await asyncio.wait_for(self._idle.get(), START_TIMEOUT_S)
        except TimeoutError:
            raise NotReady("No audio decoder is available; try again soon.", retry_after_s=5) from None
        finally:
            self._waiting -= 1
        try:
            async with asyncio.timeout(self._timeout_s):
                status, payload = await self._exchange(process, data)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, struct.error, WorkerError) as error:
            self._track(asyncio.create_task(self._replace(process)))
            logger.warning("A decode process was replaced after %s on %d bytes of audio.", type(error).__name__, len(data))
            raise UndecodableAudio("The audio could not be decoded: its decoder failed on it.", param="audio") from None
        self._idle.put_nowait(process)
        if status == STATUS_SAMPLES:
            return np.frombuffer(payload, dtype="<f4")
        raise _error(payload)

    async def _exchange(self, process: Process, data: bytes) -> tuple[int, bytes]:
        reader, writer = _streams(process)
        limits = self.limits
        writer.write(REQUEST_HEADER.pack(len(data), limits.sample_rate_hz, limits.min_audio_s, limits.max_audio_s))
        writer.write(data)
        await writer.drain()
        status, size = REPLY_HEADER.unpack(await reader.readexactly(REPLY_HEADER.size))
        largest = int(limits.max_audio_s * limits.sample_rate_hz) * 4 if status == STATUS_SAMPLES else MAX_MESSAGE_BYTES
        if size > largest or (status == STATUS_SAMPLES and size % 4):
            raise WorkerError("The child announced an answer that it may not give.")
        return status, await reader.readexactly(size)

    async def _spawn(self) -> Process:
        # The child gets the import path and nothing else of the environment.
        environment = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "OPENBLAS_NUM_THREADS": "1"}
        cpu_s = max(1, round(self._timeout_s))
        command = [sys.executable, "-m", "server.decode_worker", str(self._memory_bytes), str(cpu_s)]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, env=environment, limit=PIPE_BUFFER_BYTES, start_new_session=True
        )
        self._processes.add(process)
        try:
            reader, _ = _streams(process)
            hello = await asyncio.wait_for(reader.readexactly(len(READY)), START_TIMEOUT_S)
        except (TimeoutError, asyncio.IncompleteReadError):
            hello = b""
        if hello != READY:
            await self._kill(process)
            raise WorkerError("An audio decode process did not start.")
        return process

    async def _replace(self, broken: Process) -> None:
        self.restarts += 1
        await self._kill(broken)
        while not self._closed:
            try:
                self._idle.put_nowait(await self._spawn())
                return
            except (WorkerError, OSError):
                logger.exception("A decode process could not be replaced; trying again.")
                await asyncio.sleep(RESTART_PAUSE_S)

    async def _kill(self, process: Process) -> None:
        self._processes.discard(process)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    def _track(self, task: asyncio.Task[Result]) -> asyncio.Task[Result]:
        # The loop holds tasks weakly, so somebody has to hold them.
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Result]) -> None:
        self._tasks.discard(task)
        # An error that nobody waits for any more has been looked at here.
        if not task.cancelled():
            task.exception()


def _streams(process: Process) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if process.stdout is None or process.stdin is None:
        raise WorkerError("The child has no pipes.")
    return process.stdout, process.stdin


def _error(payload: bytes) -> ServeError:
    code, _, message = payload.decode("utf-8", "replace").partition("\n")
    return ERRORS.get(code, UndecodableAudio)(message, param="audio")
