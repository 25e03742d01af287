"""The child process of `server.audio.sandbox`: decodes one file or stream at a time, as far as it is asked.

Started as `python -m server.audio.worker MEMORY_BYTES STEP_CPU_S`; its messages are those of `server.audio.messages`. The process
ends when its stdin closes, so it never outlives the server.
"""

import contextlib
import mmap
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from server.audio.confinement import confine_decoder
from server.audio.decode import FileDecoder
from server.audio.messages import (
    CHANNELS,
    CLOSE,
    DRY,
    END,
    ERROR,
    FILE,
    MORE,
    OPENING,
    PROTECTION,
    READ,
    REPLY,
    REQUEST,
    STREAM,
    WARNING,
    unpack_opening,
)
from server.audio.ogg_stream import decode_arriving
from server.audio.raw import RawFormat
from server.audio.types import AudioLimits, Samples
from server.confined_child import announce_ready, confine, limit_cpu
from server.errors import ServeError, UndecodableAudio

# CPU time that decoding may take. Measured at most 0.01 s, 0.01 s and 0.04 s, the last for eight channels at 192 kHz.
START_CPU_S = 0.25
CPU_S_PER_MIB = 0.02
CPU_S_PER_AUDIO_S = 0.1

# More than decoding a usual file takes.
SPARE_BYTES = 16 * 2**20

WARM_UP_SAMPLES = bytes(8_000)
WARM_UP_LIMITS = AudioLimits(16_000, 0.0, 1.0)


def main(memory_bytes: int, step_cpu_s: float) -> None:
    """Confine this process and serve requests until stdin ends."""
    confine(memory_bytes)
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    _warm_up()
    missing = ", ".join(confine_decoder()).encode()
    announce_ready()
    replies.write(REPLY.pack(PROTECTION, len(missing)) + missing)
    replies.flush()
    while (request := _next_request(requests)) is not None:
        kind, size = request
        if kind in (FILE, STREAM):
            limits, raw, channel = unpack_opening(requests.read(OPENING.size))
            body = requests.read(size - OPENING.size)
            file = FileDecoder(body, limits, raw, channel) if kind == FILE else None
            _Decode(requests, replies, _CpuBudget(step_cpu_s), limits).run(file, size)
            del file, body
            limit_cpu(None)


def _warm_up() -> None:
    """Decode a little, so that every module is loaded before files are out of reach."""
    for data, raw in ((WARM_UP_SAMPLES, RawFormat("s16le", 8_000, 2)), (b"no audio", None)):
        with contextlib.suppress(ServeError):
            list(FileDecoder(data, WARM_UP_LIMITS, raw).blocks())


def _next_request(requests: BinaryIO) -> tuple[int, int] | None:
    """Return the kind and the number of a request; None where stdin has ended."""
    header = requests.read(REQUEST.size)
    return REQUEST.unpack(header) if len(header) == REQUEST.size else None


def require_spare_memory() -> None:
    """Raise `MemoryError`, which ends this process, where it has hardly any memory left.

    A decoder without memory cannot tell a bad file from a good one; the parent tries the file in a fresh one. The memory is asked
    of the system: the C library would write to it, and keep it.
    """
    try:
        mmap.mmap(-1, SPARE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        raise MemoryError from None


class _CpuBudget:
    """The CPU time that audio may take: in proportion to its bytes and to the seconds decoded so far.

    A small file that keeps a decoder busy is noticed early, and `step_cpu_s` is the most for one reply.
    """

    def __init__(self, step_cpu_s: float) -> None:
        self._step_cpu_s = step_cpu_s
        self._ends_at_s = time.process_time() + START_CPU_S

    def extend(self, *, size: int = 0, audio_s: float = 0.0) -> None:
        """Allow for more bytes or more decoded audio, and end this process when all that was allowed is used up."""
        self._ends_at_s += size / 2**20 * CPU_S_PER_MIB + audio_s * CPU_S_PER_AUDIO_S
        limit_cpu(min(self._ends_at_s - time.process_time(), self._step_cpu_s))


class _Decode:
    """The file or stream that is open, until it is closed or at its end."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO, budget: _CpuBudget, limits: AudioLimits) -> None:
        self._requests = requests
        self._replies = replies
        self._budget = budget
        self._limits = limits
        self._closed = False
        self._wanted_samples = 0
        # Decoded and not sent.
        self._blocks: list[Samples] = []
        self._held_samples = 0
        # Written and not decoded.
        self._written = b""
        self._stream_ended = False
        self._file: FileDecoder | None = None

    def run(self, file: FileDecoder | None, size: int) -> None:
        """Decode a file of this size, or else a stream, and reply until the end, an error or a CLOSE."""
        self._budget.extend(size=size)
        self._wait_for_read()
        try:
            if file is not None:
                self._file = file
                self._send_all(file.blocks())
                self._end(file.warnings)
            else:
                self._send_all(decode_arriving(self._next_bytes, self._limits))
                self._end(())
        except ServeError as error:
            require_spare_memory()
            self._reply(ERROR, f"{error.code}\n{error.message}".encode())
        except Exception:
            # An exception that hostile bytes provoke in a decoder is about those bytes. The parent sees crashes and hangs.
            require_spare_memory()
            self._reply(ERROR, f"{UndecodableAudio.code}\nThe audio could not be decoded.".encode())

    def _send_all(self, blocks: Iterator[Samples]) -> None:
        for block in blocks:
            self._budget.extend(audio_s=len(block) / self._limits.sample_rate_hz)
            self._blocks.append(block)
            self._held_samples += len(block)
            while self._held_samples >= self._wanted_samples and not self._closed:
                self._send(MORE)
                self._wait_for_read()
            if self._closed:
                return

    def _end(self, warnings: tuple[str, ...]) -> None:
        for warning in warnings:
            self._reply(WARNING, warning.encode())
        self._send(END)

    def _next_bytes(self) -> bytes:
        """Return the next bytes of a stream. FFmpeg calls this, and no error passes through it."""
        while not (self._written or self._stream_ended or self._closed):
            self._send(DRY)
            self._wait_for_read()
        data, self._written = self._written, b""
        return data

    def _wait_for_read(self) -> None:
        """Return once samples are wanted, or once nothing is open any more."""
        while (request := _next_request(self._requests)) is not None:
            kind, number = request
            if kind == CLOSE:
                break
            if kind == READ:
                self._wanted_samples = number
                self._budget.extend()
                return
            self._stream_ended = number == 0
            self._written += self._requests.read(number)
            self._budget.extend(size=number)
        self._closed = True

    def _send(self, status: int) -> None:
        if (file := self._file) is not None:
            self._reply(CHANNELS, str(file.channels).encode())
            self._file = None
        samples = np.concatenate([np.zeros(0, np.float32), *self._blocks])
        self._reply(status, np.ascontiguousarray(samples[: self._wanted_samples], dtype="<f4").data.cast("B"))
        self._blocks = [samples[self._wanted_samples :]]
        self._held_samples = len(self._blocks[0])

    def _reply(self, status: int, payload: bytes | memoryview) -> None:
        if self._closed:
            return
        self._replies.write(REPLY.pack(status, len(payload)))
        self._replies.write(payload)
        self._replies.flush()


if __name__ == "__main__":
    main(memory_bytes=int(sys.argv[1]), step_cpu_s=float(sys.argv[2]))
