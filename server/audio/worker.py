"""The child of the decode pool: decodes audio from stdin, as much at a time as it is asked for, and answers on stdout, for ever.

Started as `python -m server.audio.worker MEMORY_BYTES CPU_S`. Messages are a fixed header and raw bytes; nothing is
unpickled on either side. It ends when its stdin closes, so it never outlives the server.

The parent opens a file or a stream, writes to a stream where it wants to, and gets one reply for every READ. After CLOSE, END or
ERROR nothing is open; a CLOSE where nothing is open does nothing.
"""

import os
import resource
import struct
import sys
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from server.audio.decode import AudioLimits, Samples, decode_blocks
from server.audio.ogg_stream import decode_arriving
from server.errors import ServeError, UndecodableAudio

# Kind, and the number of bytes that follow it; for READ of samples that are wanted, at least one.
REQUEST = struct.Struct("<BQ")
# FILE: the limits, and a whole file. STREAM: the limits. WRITE: more of a stream, nothing where it is over.
FILE, STREAM, WRITE, READ, CLOSE = range(5)
# Sample rate, shortest and longest audio.
LIMITS = struct.Struct("<Idd")
# Status and payload bytes. The payload is float32 samples, but for ERROR "code\nmessage" in UTF-8.
REPLY = struct.Struct("<BQ")
# MORE: as many as are wanted. DRY: all that there are before the next WRITE. END: the last.
MORE, DRY, END, ERROR = range(4)
READY = b"ready"


def main(memory_bytes: int, cpu_s: int) -> None:
    """Confine this process, say that it is ready, and serve until stdin ends."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    # mpg123 complains on stderr about every damaged frame.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    replies.write(READY)
    replies.flush()
    while (request := _next_request(requests)) is not None:
        kind, size = request
        if kind in (FILE, STREAM):
            limits = AudioLimits(*LIMITS.unpack(requests.read(LIMITS.size)))
            _Decode(requests, replies, cpu_s).run(kind, requests.read(size - LIMITS.size), limits)


def _next_request(requests: BinaryIO) -> tuple[int, int] | None:
    """Kind and number; None where stdin has ended."""
    header = requests.read(REQUEST.size)
    return REQUEST.unpack(header) if len(header) == REQUEST.size else None


class _Decode:
    """What is open, until it is closed or at its end."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO, cpu_s: int) -> None:
        self._requests = requests
        self._replies = replies
        self._cpu_s = cpu_s
        self._closed = False
        self._wanted = 0
        # Decoded and not sent.
        self._blocks: list[Samples] = []
        self._held = 0
        # Written and not decoded.
        self._written = b""
        self._over = False

    def run(self, kind: int, body: bytes, limits: AudioLimits) -> None:
        self._wait_for_read()
        try:
            self._send_all(decode_blocks(body, limits) if kind == FILE else decode_arriving(self._more, limits))
        except ServeError as error:
            self._reply(ERROR, f"{error.code}\n{error.message}".encode())
        except Exception:
            # Whatever hostile bytes provoke in a decoder is about those bytes; crashes and hangs are the parent's to see.
            self._reply(ERROR, f"{UndecodableAudio.code}\nThe audio could not be decoded.".encode())

    def _send_all(self, blocks: Iterator[Samples]) -> None:
        for block in blocks:
            self._blocks.append(block)
            self._held += len(block)
            while self._held >= self._wanted and not self._closed:
                self._send(MORE)
                self._wait_for_read()
            if self._closed:
                return
        self._send(END)

    def _more(self) -> bytes:
        """The next bytes of a stream. libsndfile's reads come here, and no error passes through those."""
        while not (self._written or self._over or self._closed):
            self._send(DRY)
            self._wait_for_read()
        data, self._written = self._written, b""
        return data

    def _wait_for_read(self) -> None:
        """Return with something wanted, or with nothing open any more."""
        while (request := _next_request(self._requests)) is not None:
            kind, number = request
            if kind == CLOSE:
                break
            if kind == READ:
                self._wanted = number
                _allow_more_cpu(self._cpu_s)
                return
            self._over = number == 0
            self._written += self._requests.read(number)
        self._closed = True

    def _send(self, status: int) -> None:
        samples = np.concatenate([np.zeros(0, np.float32), *self._blocks])
        self._reply(status, np.ascontiguousarray(samples[: self._wanted], dtype="<f4").data.cast("B"))
        self._blocks = [samples[self._wanted :]]
        self._held = len(self._blocks[0])

    def _reply(self, status: int, payload: bytes | memoryview) -> None:
        if self._closed:
            return
        self._replies.write(REPLY.pack(status, len(payload)))
        self._replies.write(payload)
        self._replies.flush()


def _allow_more_cpu(cpu_s: int) -> None:
    # The kernel counts over the process's whole life, so the limit moves along with what is asked for.
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used_s = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used_s + cpu_s, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(memory_bytes=int(sys.argv[1]), cpu_s=int(sys.argv[2]))
