"""Audio files in many containers and codecs, written by FFmpeg, and damage to them."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream

BIT_RATES = {"libopencore_amrnb": 12_200}
Sound = npt.NDArray[np.float32]


def encode(
    sound: Sound, rate_hz: int, muxer: str, codec: str, *, sample_format: str = "", layout: str = "", **options: str
) -> bytes:
    """Return [samples] or [samples, channels] at a rate, as a file of FFmpeg's `muxer` and `codec`."""
    channels = sound.reshape(len(sound), -1)
    layout = layout or {1: "mono", 2: "stereo"}[channels.shape[1]]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=muxer, options=options) as file:
        stream = file.add_stream(codec, rate=rate_hz, layout=layout)
        assert isinstance(stream, AudioStream)
        stream.bit_rate = BIT_RATES.get(codec, 64_000)
        if sample_format:
            stream.codec_context.format = sample_format
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels.reshape(1, -1)), format="flt", layout=layout)
        frame.sample_rate = rate_hz
        frame.time_base = Fraction(1, rate_hz)
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return buffer.getvalue()


def riff_wave(samples: bytes, fmt: bytes, *, size: int | None = None, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a WAV file with these chunks, whose `data` may claim another size."""
    head = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + before
    body = head + b"data" + struct.pack("<I", len(samples) if size is None else size) + samples + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


def wave_format(code: int = 1, channels: int = 1, rate_hz: int = 16_000, bits: int = 16, extra: bytes = b"") -> bytes:
    """Return the content of a `fmt ` chunk."""
    block = channels * bits // 8
    return struct.pack("<HHIIHH", code, channels, rate_hz, rate_hz * block, block, bits) + extra
