"""The header of a WAV file at the beginning of audio that arrives in pieces, and the samples that it announces."""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.audio.types import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ
from server.errors import InvalidAudio, UndecodableAudio

PCM, FLOAT, ALAW, MULAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
MAX_HEADER_BYTES = 65_536
# A recorder that cannot seek writes a placeholder of about this size or 0: the audio lasts as long as bytes come.
STREAMED_BYTES = 0x7FFF0000
MAGIC_BYTES = 12


@dataclass(frozen=True)
class PcmFormat:
    """The format of samples without a header: WAV's code of the encoding, its bits, the rate and the interleaved channels."""

    sample_rate_hz: int
    code: int = PCM
    bits: int = 16
    channels: int = 1

    @property
    def frame_bytes(self) -> int:
        return self.bits // 8 * self.channels

    def decode(self, data: bytes) -> npt.NDArray[np.float32]:
        """Return whole frames as mono samples. Raises `InvalidAudio` for floats that are no sound."""
        samples = self._decode_values(data).reshape(-1, self.channels)
        mixed: npt.NDArray[np.float32] = samples[:, 0] if self.channels == 1 else samples.mean(axis=1, dtype=np.float32)
        return mixed

    def _decode_values(self, data: bytes) -> npt.NDArray[np.float32]:
        match self.code, self.bits:
            case (1, 16):
                return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(2**15)
            case (1, 8):
                return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(2**7)
            case (1, 24):
                padded = np.zeros((len(data) // 3, 4), np.uint8)
                padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
                return (padded.view("<i4")[:, 0] / 2**31).astype(np.float32)
            case (1, 32):
                return (np.frombuffer(data, "<i4") / 2**31).astype(np.float32)
            case (3, 32):
                samples = np.frombuffer(data, "<f4").astype(np.float32)
                if len(samples) and not np.max(np.abs(samples)) <= 1e3:
                    raise InvalidAudio("The audio has samples that are not finite, or far beyond 1.", param="audio")
                return samples
            case (6, 8):
                return ALAW_VALUES[np.frombuffer(data, np.uint8)]
            case _:
                return MULAW_VALUES[np.frombuffer(data, np.uint8)]


READABLE = {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (ALAW, 8), (MULAW, 8)}


@dataclass(frozen=True)
class WaveHeader:
    """A header that is `size` bytes long, and the bytes of samples behind it, None if all that comes belongs to them."""

    format: PcmFormat
    size: int
    data_bytes: int | None


def may_be_wave(data: bytes) -> bool:
    """Return whether these first bytes are, or may become, those of a WAV file."""
    return data[:4] == b"RIFF"[: len(data)] and data[8:12] == b"WAVE"[: len(data[8:12])]


def read_header(data: bytes) -> WaveHeader | None:
    """Return the header of a WAV file, None while it is not whole. Raises `UndecodableAudio`."""
    format: PcmFormat | None = None
    position = MAGIC_BYTES
    while position + 8 <= len(data):
        kind, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8
        if kind == b"data":
            if format is None:
                raise UndecodableAudio("The WAV header does not say what the samples are.", param="audio")
            is_open = size == 0 or size >= STREAMED_BYTES
            return WaveHeader(format, position, None if is_open else size)
        if position + size > MAX_HEADER_BYTES:
            raise UndecodableAudio("The WAV header is too long.", param="audio")
        if position + size > len(data):
            return None
        if kind == b"fmt ":
            format = _read_format(data[position : position + size])
        position += size + size % 2
    return None


def _read_format(chunk: bytes) -> PcmFormat:
    if len(chunk) < 16:
        raise UndecodableAudio("The WAV header is damaged.", param="audio")
    code, channels, rate_hz, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
    if code == EXTENSIBLE and len(chunk) >= 26:
        code = int.from_bytes(chunk[24:26], "little")
    if (code, bits) not in READABLE:
        raise UndecodableAudio("The samples of this WAV file are not read live; send 16-bit PCM.", param="audio")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ or not 1 <= channels <= MAX_CHANNELS:
        raise UndecodableAudio(f"A WAV file of {channels} channels at {rate_hz} Hz is not read live.", param="audio")
    return PcmFormat(rate_hz, code, bits, channels)


def _mulaw_values() -> npt.NDArray[np.float32]:
    """Return the value of each byte of G.711 mu-law."""
    byte = ~np.arange(256, dtype=np.uint8)
    magnitude = (((byte & 0xF).astype(np.int32) << 3) + 0x84 << (byte >> 4 & 7)) - 0x84
    return (np.where(byte & 0x80, -magnitude, magnitude) / 2**15).astype(np.float32)


def _alaw_values() -> npt.NDArray[np.float32]:
    """Return the value of each byte of G.711 A-law."""
    byte = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent = (byte >> 4 & 7).astype(np.int32)
    step = ((byte & 0xF).astype(np.int32) << 4) + 8
    magnitude = np.where(exponent == 0, step, step + 0x100 << np.maximum(exponent - 1, 0))
    return (np.where(byte & 0x80, magnitude, -magnitude) / 2**15).astype(np.float32)


MULAW_VALUES = _mulaw_values()
ALAW_VALUES = _alaw_values()
