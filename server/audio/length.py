"""How long audio lasts at most, as far as its first bytes tell."""

import math

from server.audio.raw import RawFormat
from server.audio.wave_header import may_be_wave, read_header
from server.errors import UndecodableAudio

SAMPLE_BYTES = {"s16le": 2, "s16be": 2, "f32le": 4, "mulaw": 1, "alaw": 1}


def longest_s(file: bytes, raw: RawFormat | None) -> float:
    """Return a time that a file lasts at most, infinite where only decoding tells. `raw` is the format of bytes without a
    header."""
    bytes_per_s = _read_bytes_per_s(file) if raw is None else SAMPLE_BYTES[raw.encoding] * raw.channels * raw.sample_rate_hz
    return len(file) / bytes_per_s if bytes_per_s else math.inf


def _read_bytes_per_s(file: bytes) -> int:
    """Return the rate of samples in plain WAV, 0 for any other file."""
    try:
        header = read_header(file) if may_be_wave(file) else None
    except UndecodableAudio:
        return 0
    return header.format.frame_bytes * header.format.sample_rate_hz if header is not None else 0
