"""WAV read by numpy alone: PCM and float samples, nothing else.

libsndfile is not asked, because the codecs that hide in WAV files (ADPCM, GSM) are where its parsers break.
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.errors import UndecodableAudio

PCM, FLOAT, EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
# The tail that turns a 16-bit format code into the GUID of an extensible header.
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
MAX_CHUNKS = 128
# Writers that cannot seek (a pipe) put this or more as the size of a chunk whose end they do not know.
STREAMED_SIZE = 0x7FFFF000
SUPPORTED = "8, 16, 24 or 32 bit PCM, and 32 or 64 bit float"


@dataclass(frozen=True)
class WavFormat:
    """What the `fmt ` chunk says, checked: `bits` is one of those of `SUPPORTED`."""

    is_float: bool
    channels: int
    sample_rate_hz: int
    bits: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8


def parse_wav(data: bytes) -> tuple[WavFormat, memoryview]:
    """The format and the whole frames of a RIFF/WAVE file. Raises `UndecodableAudio`.

    The RIFF chunk's own size is not read: nothing depends on it, and streamed files have it wrong.
    """
    wav_format: WavFormat | None = None
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        name, size = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if name == b"data":
            if wav_format is None:
                raise _refused("its data comes before its format")
            return wav_format, _sample_bytes(data, body, size, wav_format)
        if body + size > len(data):
            raise _refused("a chunk reaches beyond its end")
        if name == b"fmt ":
            wav_format = _parse_format(data[body : body + size])
        position = body + size + size % 2
    raise _refused("it has no data chunk where one is expected")


def wav_samples(wav_format: WavFormat, frames: memoryview) -> npt.NDArray[np.floating]:
    """Whole frames as [frames, channels] floats; integer PCM is scaled to [-1, 1)."""
    if wav_format.is_float:
        samples: npt.NDArray[np.floating] = np.frombuffer(frames, dtype=f"<f{wav_format.bits // 8}")
    elif wav_format.bits == 8:
        samples = (np.frombuffer(frames, dtype=np.uint8).astype(np.float32) - 128) / 128
    elif wav_format.bits == 24:
        # Each triple becomes the upper three bytes of an int32, so the sign comes for free.
        padded = np.zeros((len(frames) // 3, 4), dtype=np.uint8)
        padded[:, 1:] = np.frombuffer(frames, dtype=np.uint8).reshape(-1, 3)
        samples = padded.view("<i4").ravel().astype(np.float32) / 2**31
    else:
        samples = np.frombuffer(frames, dtype=f"<i{wav_format.bits // 8}").astype(np.float32) / 2 ** (wav_format.bits - 1)
    return samples.reshape(-1, wav_format.channels)


def _parse_format(chunk: bytes) -> WavFormat:
    if len(chunk) < 16:
        raise _refused("its format chunk is too short")
    code, channels, sample_rate_hz, _, block_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if code == EXTENSIBLE:
        if len(chunk) < 40 or chunk[26:40] != GUID_TAIL:
            raise _refused(f"its sample format is unknown; {SUPPORTED} are read")
        (code,) = struct.unpack_from("<H", chunk, 24)
    if (code, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        raise _refused(f"format code {code} with {bits} bits is not read; {SUPPORTED} are")
    if channels == 0 or block_bytes != channels * bits // 8:
        raise _refused("its channel count and frame size contradict each other")
    return WavFormat(code == FLOAT, channels, sample_rate_hz, bits)


def _sample_bytes(data: bytes, start: int, size: int, wav_format: WavFormat) -> memoryview:
    available = len(data) - start
    if size >= STREAMED_SIZE:
        size = available - available % wav_format.frame_bytes
    if size > available:
        raise _refused(f"it is cut off: its header promises {size} bytes of samples and {available} are there")
    if size % wav_format.frame_bytes:
        raise _refused("its data is not a whole number of frames")
    return memoryview(data)[start : start + size]


def _refused(reason: str) -> UndecodableAudio:
    return UndecodableAudio(f"The WAV file cannot be read: {reason}.", param="audio")
