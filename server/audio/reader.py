"""Reading of audio files by FFmpeg, through PyAV: the sound of the first audio stream, and what was missing of it.

PyAV was chosen because its wheel carries FFmpeg's demuxers and decoders, which read what every player reads and are fuzzed
continuously. It runs on hostile bytes, in a confined child process (`server.audio.worker`).
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.error import FFmpegError

from server.audio.containers import CODECS, FLAC, MP3, OGG, WAV, Container
from server.audio.raw import RawFormat
from server.audio.types import Frames
from server.errors import UndecodableAudio

# No other file or address is opened, and no decoder beside those listed, whatever a file refers to.
CONFINED = {"protocol_whitelist": "none", "codec_whitelist": ",".join(sorted(CODECS))}
# FFmpeg would search 16-bit samples for other formats that hide in them, which takes ten times as long as decoding.
DIRECT = {"max_probe_packets": "0"}
# Packets of PCM are small by default, and each costs as much as a larger one. Very large ones cost more at the beginning.
PCM_PACKETS = {"max_size": "8192"}
# A header that names more seconds than there are is believed beyond this: codecs pad the beginning and the end.
SLACK_S = 0.25
# Writers that cannot seek, or that died, leave 0 or a number from here on as the size of data whose end they do not know.
PLACEHOLDER_BYTES = 0x7FFF0000
FORMATS = {
    "u8": ("u1", 128, 2**7),
    "s16": ("i2", 0, 2**15),
    "s32": ("i4", 0, 2**31),
    "s64": ("i8", 0, 2**63),
    "flt": ("f4", 0, 1),
    "dbl": ("f8", 0, 1),
}
"""numpy's name of FFmpeg's sample format, the value of silence, and the value of full scale."""
END_OF_STREAM = 4
MAX_DAMAGED_IN_A_ROW = 500
XING_SEARCH_BYTES = 4096
XING = re.compile(rb"Xing|Info")

# FFmpeg would write a line about every damaged frame.
av.logging.set_level(None)


class Readable(Protocol):
    """A file object; with a `seek` and a `tell` it is also searched."""

    def read(self, count: int, /) -> bytes: ...


class OnceThrough:
    """A file that can only be read from start to end, as a stream that arrives."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def read(self, count: int) -> bytes:
        data = bytes(self._data[self._position : self._position + count])
        self._position += len(data)
        return data


@dataclass(frozen=True)
class Sound:
    """Decoded audio: [frames, channels] with the rate and the names of its channels."""

    sample_rate_hz: int
    channels: tuple[str, ...]
    frames: Frames


class AudioReader:
    """One file, read once. `warnings` is complete after the last sound: sentences about what was missing or left out."""

    def __init__(
        self, source: Readable, container: Container, raw: RawFormat | None = None, length_s: float | None = None
    ) -> None:
        """Read the header; `length_s` is the length where that is known from elsewhere. Raises `UndecodableAudio`."""
        self.warnings: list[str] = []
        self._length_s = length_s
        self._container = container
        options = {**CONFINED, **DIRECT} | (PCM_PACKETS if container is WAV else {})
        if raw is not None:
            options |= {"sample_rate": str(raw.sample_rate_hz), "ch_layout": f"{raw.channels}C"}
        try:
            self._file = av.open(source, "r", format=container.demuxer, options=options)
        except (FFmpegError, ValueError):
            raise self._undecodable() from None
        self._stream = self._first_audio()

    @property
    def shape(self) -> tuple[int, int]:
        """The sample rate and the channels by the header; 0 where it has none."""
        codec = self._stream.codec_context
        return codec.sample_rate or 0, codec.channels

    @property
    def declared_s(self) -> float | None:
        """Seconds of audio by the header; None where it has none."""
        stream = self._stream
        if not self._container.tells_length:
            return self._length_s
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        # The length of a whole file is that of its longest stream.
        return self._file.duration / 1e6 if self._file.duration and len(self._file.streams) == 1 else None

    def read(self) -> Iterator[Sound]:
        """Yield the sound, frame by frame. Raises `UndecodableAudio` where there is none at all."""
        packets = damaged = damaged_in_a_row = 0
        decoded_s = 0.0
        with self._file:
            declared_s = self.declared_s
            packet_source = self._file.demux(self._stream)
            while True:
                try:
                    packet = next(packet_source, None)
                except (FFmpegError, ValueError):
                    self.warnings.append(f"The file is damaged after {decoded_s:.3f} s; the rest was left out.")
                    break
                if packet is None:
                    break
                packets += packet.size > 0
                try:
                    frames = packet.decode()
                except (FFmpegError, ValueError):
                    damaged += 1
                    damaged_in_a_row += 1
                    if damaged_in_a_row < MAX_DAMAGED_IN_A_ROW:
                        continue
                    self.warnings.append(f"The file is damaged after {decoded_s:.3f} s; the rest was left out.")
                    break
                damaged_in_a_row = 0
                for frame in frames:
                    if frame.samples and frame.sample_rate:
                        sound = _sound_of(frame)
                        decoded_s += frame.samples / frame.sample_rate
                        yield sound
        if not decoded_s and (damaged or self.warnings or (declared_s or 0.0) > SLACK_S):
            raise self._undecodable()
        if damaged:
            self.warnings.append(f"Damaged packets were left out: {damaged} of {packets}.")
        if declared_s is not None and decoded_s < declared_s - SLACK_S:
            self.warnings.append(f"Of {declared_s:.3f} s of audio {decoded_s:.3f} s could be decoded.")

    def close(self) -> None:
        """Free what was opened. `read` does that at its end."""
        self._file.close()

    def _first_audio(self) -> AudioStream:
        streams = self._file.streams.audio
        if not streams:
            self._file.close()
            raise UndecodableAudio(f"The {self._container.name} file holds no audio.", param="audio")
        # PyAV's types do not say that there is none where FFmpeg has no decoder.
        codec: AudioCodecContext | None = streams[0].codec_context
        if codec is None or codec.name not in CODECS:
            self._file.close()
            raise UndecodableAudio(f"The codec of this {self._container.name} file is not read.", param="audio")
        codec.thread_count = 1
        if self._container is FLAC or codec.name == "flac":
            # Without it the noise of damaged frames is played.
            codec.options = {"err_detect": "crccheck+explode"}
        if len(streams) > 1:
            self.warnings.append(f"The file holds {len(streams)} audio streams; only the first was decoded.")
        return streams[0]

    def _undecodable(self) -> UndecodableAudio:
        return UndecodableAudio(
            f"The {self._container.name} file is damaged or cut off; nothing in it can be decoded.", param="audio"
        )


def open_file(data: bytes, container: Container, start: int, raw: RawFormat | None = None) -> AudioReader:
    """Return a reader of the file that begins at `start`. Raises `UndecodableAudio`."""
    if container is OGG:
        return _open_ogg(data[start:])
    if container is MP3 and XING.search(data, start, start + XING_SEARCH_BYTES):
        container = Container(MP3.name, MP3.demuxer, tells_length=True)
    reader = AudioReader(io.BytesIO(data[start:]), container, raw)
    if container is WAV and (missing := _missing_wav_bytes(data, start)):
        reader.warnings.append(f"The file is cut off: {missing} bytes of its samples are missing.")
    return reader


def _open_ogg(data: bytes) -> AudioReader:
    # The last page has the length. The audio is read as that of a stream that arrives, so that both give the same samples.
    whole = AudioReader(io.BytesIO(data), Container(OGG.name, OGG.demuxer, tells_length=True))
    length_s = whole.declared_s
    whole.close()
    reader = AudioReader(OnceThrough(memoryview(data)), OGG, length_s=length_s)
    if not _ends_marked(data):
        reader.warnings.append("The Ogg stream has no end mark; its end may be missing.")
    return reader


def _sound_of(frame: AudioFrame) -> Sound:
    names = tuple(channel.name for channel in frame.layout.channels)
    dtype, zero, full_scale = FORMATS[frame.format.packed.name]
    if frame.format.is_planar:
        # `to_ndarray` counts one plane too many where there are eight, and reads beyond the frame.
        planes = frame.planes[: len(names)]
        values = np.stack([np.frombuffer(memoryview(plane), dtype, frame.samples) for plane in planes], axis=1)
    else:
        values = np.frombuffer(memoryview(frame.planes[0]), dtype, frame.samples * len(names)).reshape(-1, len(names))
    frames: Frames = values.astype(np.float64 if dtype == "f8" else np.float32)
    if zero:
        frames -= zero
    if full_scale != 1:
        frames *= 1 / full_scale
    return Sound(frame.sample_rate, names, frames)


def _missing_wav_bytes(data: bytes, start: int) -> int:
    """Return how many bytes of samples the header promises and the file does not hold."""
    order: Literal["big", "little"] = "big" if data.startswith(b"RIFX", start) else "little"
    place = start + 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], order)
        if data.startswith(b"data", place):
            return max(0, place + 8 + size - len(data)) if size < PLACEHOLDER_BYTES else 0
        place += 8 + size + size % 2
    return 0


def _ends_marked(data: bytes) -> bool:
    """Return whether the last page of an Ogg file is whole and says that it is the last."""
    last = data.rfind(b"OggS")
    if last < 0 or len(data) < last + 27:
        return False
    segments = data[last + 26]
    size = 27 + segments + sum(data[last + 27 : last + 27 + segments])
    return bool(data[last + 5] & END_OF_STREAM) and len(data) >= last + size
