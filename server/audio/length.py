"""How long audio lasts at most, as far as its first bytes tell."""

import math

from server.audio.raw import RawFormat
from server.audio.wave_header import PcmFormat, may_be_wave, read_header
from server.errors import UndecodableAudio


def longest_s(file: bytes, raw: RawFormat | None) -> float:
    """Return a time that a file lasts at most, infinite where only decoding tells. `raw` is the format of bytes without a
    header."""
    format = raw or _read_format(file)
    bytes_per_s = format.frame_bytes * format.sample_rate_hz if format is not None else 0
    return len(file) / bytes_per_s if bytes_per_s else math.inf


def _read_format(file: bytes) -> PcmFormat | None:
    """Return the format of samples in plain WAV, None for any other file."""
    try:
        header = read_header(file) if may_be_wave(file) else None
    except UndecodableAudio:
        return None
    return header.format if header is not None else None
