"""One confined decode process, as its parent sees it: started, asked, killed."""

import asyncio
import contextlib
import os
import struct
import sys
from asyncio.subprocess import PIPE, Process

import numpy as np

from server.audio.decode import AudioLimits, Samples
from server.audio.worker import CLOSE, ERROR, FILE, LIMITS, READ, READY, REPLY, REQUEST, STREAM, WRITE
from server.errors import AudioTooLong, AudioTooShort, InvalidAudio, ServeError, UndecodableAudio

ERRORS: dict[str, type[ServeError]] = {kind.code: kind for kind in (AudioTooShort, AudioTooLong, InvalidAudio, UndecodableAudio)}
MAX_MESSAGE_BYTES = 1024
START_TIMEOUT_S = 60.0
PIPE_BUFFER_BYTES = 2**20


class WorkerError(Exception):
    """The child died, hung or spoke nonsense."""


class DecodeChild:
    """A child, and what is open in it. `start` makes one; whoever meets a `WorkerError` has to `kill` it."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._timeout_s = timeout_s

    @property
    def process_id(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, memory_bytes: int, timeout_s: float) -> "DecodeChild":
        """A child that is ready; `timeout_s` is what each `read` may take. Raises `WorkerError` or `OSError`."""
        # The child gets the import path and nothing else of the environment.
        environment = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "server.audio.worker", str(memory_bytes), str(max(1, round(timeout_s)))]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, env=environment, limit=PIPE_BUFFER_BYTES, start_new_session=True
        )
        if process.stdout is None or process.stdin is None:
            raise WorkerError("The child has no pipes.")
        child = cls(process, process.stdout, process.stdin, timeout_s)
        try:
            hello = await asyncio.wait_for(process.stdout.readexactly(len(READY)), START_TIMEOUT_S)
        except (TimeoutError, asyncio.IncompleteReadError):
            hello = b""
        except BaseException:
            await child.kill()
            raise
        if hello != READY:
            await child.kill()
            raise WorkerError("An audio decode process did not start.")
        return child

    async def kill(self) -> None:
        """End the process, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        # Its pipes too, unless somebody is still reading: a loop that ends leaves none of them open.
        with contextlib.suppress(RuntimeError):
            await self._process.communicate()

    def open_file(self, data: bytes, limits: AudioLimits) -> None:
        self._open(FILE, data, limits)

    def open_stream(self, limits: AudioLimits) -> None:
        self._open(STREAM, b"", limits)

    def write(self, data: bytes) -> None:
        """More of the stream that is open; nothing where it is over."""
        self._writer.write(REQUEST.pack(WRITE, len(data)))
        self._writer.write(data)

    def close(self) -> None:
        """Forget what is open. No `read` may be going on."""
        self._writer.write(REQUEST.pack(CLOSE, 0))

    async def read(self, count: int) -> tuple[int, Samples]:
        """The status, one of the worker's, and the next samples: `count` with `MORE`, fewer with `DRY` and `END`.

        Raises the error of audio that cannot be decoded, after which nothing is open, or `WorkerError`.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._ask(count)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, struct.error) as error:
            raise WorkerError(type(error).__name__) from None

    async def _ask(self, count: int) -> tuple[int, Samples]:
        self._writer.write(REQUEST.pack(READ, count))
        await self._writer.drain()
        status, size = REPLY.unpack(await self._reader.readexactly(REPLY.size))
        if size > (MAX_MESSAGE_BYTES if status == ERROR else 4 * count) or (status != ERROR and size % 4):
            raise WorkerError("The child announced an answer that it may not give.")
        payload = await self._reader.readexactly(size)
        if status == ERROR:
            raise _error(payload)
        return status, np.frombuffer(payload, dtype="<f4")

    def _open(self, kind: int, body: bytes, limits: AudioLimits) -> None:
        self._writer.write(REQUEST.pack(kind, LIMITS.size + len(body)))
        self._writer.write(LIMITS.pack(limits.sample_rate_hz, limits.min_audio_s, limits.max_audio_s))
        self._writer.write(body)


def _error(payload: bytes) -> ServeError:
    code, _, message = payload.decode("utf-8", "replace").partition("\n")
    return ERRORS.get(code, UndecodableAudio)(message, param="audio")
