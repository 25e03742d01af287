"""The audio that `thinbridge mic` sends: mono 16-bit PCM in pieces of 40 ms, from a file or as stdin brings it."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from server.audio.decode import AudioLimits, decode_audio

PIECE_S = 0.04
SAMPLE_BYTES = 2
RATE_HZ = 16_000
MAX_FILE_S = 12 * 3600.0
LIVE_LEAD_S = 0.5
# How a file begins that raw samples do not happen to begin like: WAV, FLAC, Ogg, MP3 with a tag.
FILE_MAGIC = (b"RIFF", b"fLaC", b"OggS", b"ID3")


@dataclass(frozen=True)
class Source:
    """Pieces of whole samples; the next one may block until somebody has spoken it.

    `lead_s` is how far ahead of its own clock the audio may be sent: a microphone's samples come in bursts.
    """

    rate_hz: int
    pieces: Iterator[bytes]
    lead_s: float = 0.0


def open_source(path: str, rate_hz: int | None) -> Source:
    """What is in a file, or comes through stdin where the path is `-`.

    With a rate it is raw mono 16-bit PCM. Without one it is an audio file; on stdin it is that where it begins like one, and
    raw at 16 kHz otherwise. Raises `ServeError` for a file that cannot be decoded, `OSError` for one that cannot be read.
    """
    if path != "-":
        data = Path(path).read_bytes()
        return _decoded(data) if rate_hz is None else Source(rate_hz, _cut(data, rate_hz))
    # Unbuffered: a thread that waits with a buffer's lock would hold up the end of the program.
    stdin = FileIO(0, closefd=False)
    head = _read(stdin, 4)
    if rate_hz is None and head.startswith(FILE_MAGIC):
        return _decoded(head + stdin.readall())
    return Source(rate_hz or RATE_HZ, _spoken(stdin, head, rate_hz or RATE_HZ), LIVE_LEAD_S)


def _decoded(data: bytes) -> Source:
    samples = decode_audio(data, AudioLimits(RATE_HZ, 0.0, MAX_FILE_S))
    return Source(RATE_HZ, _cut((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes(), RATE_HZ))


def _cut(pcm: bytes, rate_hz: int) -> Iterator[bytes]:
    size = _piece_bytes(rate_hz)
    whole = _whole_samples(pcm)
    return (whole[start : start + size] for start in range(0, len(whole), size))


def _spoken(file: FileIO, head: bytes, rate_hz: int) -> Iterator[bytes]:
    size = _piece_bytes(rate_hz)
    while piece := _whole_samples(head + _read(file, size - len(head))):
        head = b""
        yield piece


def _whole_samples(pcm: bytes) -> bytes:
    """Half a sample can only be the very end."""
    return pcm[: len(pcm) // SAMPLE_BYTES * SAMPLE_BYTES]


def _piece_bytes(rate_hz: int) -> int:
    return SAMPLE_BYTES * round(PIECE_S * rate_hz)


def _read(file: FileIO, size: int) -> bytes:
    """So many bytes, or fewer where there are no more to come."""
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data
