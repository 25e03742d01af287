"""The child of the decode pool: reads audio files from stdin, writes samples or an error to stdout, for ever.

Started as `python -m server.decode_worker MEMORY_BYTES CPU_S`. Messages are a fixed header and raw bytes; nothing is
unpickled on either side. It ends when its stdin closes, so it never outlives the server.
"""

import os
import resource
import struct
import sys
from typing import BinaryIO

import numpy as np

from server.audio import AudioLimits, decode_audio
from server.errors import ServeError, UndecodableAudio

# Body bytes, sample rate, shortest and longest audio.
REQUEST_HEADER = struct.Struct("<QIdd")
# Status and payload bytes. The payload is float32 samples, or "code\nmessage" in UTF-8.
REPLY_HEADER = struct.Struct("<BQ")
STATUS_SAMPLES, STATUS_ERROR = 0, 1
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
    while len(header := requests.read(REQUEST_HEADER.size)) == REQUEST_HEADER.size:
        body_bytes, sample_rate_hz, min_audio_s, max_audio_s = REQUEST_HEADER.unpack(header)
        body = requests.read(body_bytes)
        _allow_more_cpu(cpu_s)
        _answer(replies, body, AudioLimits(sample_rate_hz, min_audio_s, max_audio_s))


def _allow_more_cpu(cpu_s: int) -> None:
    # The kernel counts over the process's whole life, so the limit moves along with each file.
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used_s = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used_s + cpu_s, resource.RLIM_INFINITY))


def _answer(replies: BinaryIO, body: bytes, limits: AudioLimits) -> None:
    try:
        samples = decode_audio(body, limits)
    except ServeError as error:
        _write(replies, STATUS_ERROR, f"{error.code}\n{error.message}".encode())
    except Exception:
        # Whatever hostile bytes provoke in a decoder is about those bytes; crashes and hangs are the parent's to see.
        _write(replies, STATUS_ERROR, f"{UndecodableAudio.code}\nThe audio could not be decoded.".encode())
    else:
        _write(replies, STATUS_SAMPLES, np.ascontiguousarray(samples, dtype="<f4").data.cast("B"))


def _write(replies: BinaryIO, status: int, payload: bytes | memoryview) -> None:
    replies.write(REPLY_HEADER.pack(status, len(payload)))
    replies.write(payload)
    replies.flush()


if __name__ == "__main__":
    main(memory_bytes=int(sys.argv[1]), cpu_s=int(sys.argv[2]))
