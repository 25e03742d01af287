"""Decoding of audio files: bytes in, mono float32 samples at the model's rate out.

The bytes alone decide the format, never a name or a content type, and only the formats listed here are read. Decoding goes block
by block and stops at the cap on seconds, so a small file that unpacks to hours costs little, and a file that lasts for hours is
never in memory as samples as a whole. This runs native code on hostile bytes, in a child process (`server.audio.sandbox`).
"""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from server.errors import AudioTooLong, AudioTooShort, InvalidAudio, UndecodableAudio

Container = Literal["WAV", "FLAC", "OGG", "MP3"]
Samples = npt.NDArray[np.float32]
"""[samples], mono"""
Frames = npt.NDArray[np.floating]
"""[frames, channels]"""

FORMATS = "WAV, FLAC, OGG Vorbis, OGG Opus or MP3"
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 192_000
MAX_CHANNELS = 8
# Float files are expected within 1; this leaves room for loud masters and none for garbage.
MAX_AMPLITUDE = 1e3
# libsndfile reports 2**63 - 1 frames where a header leaves them open.
UNKNOWN_FRAMES = 2**62
# Writers that cannot seek (a pipe) give this many bytes or more as the size of data whose end they do not know.
STREAMED_BYTES = 0x7FFFF000
# How libsndfile logs a chunk of data that the file does not hold as a whole.
CUT_OFF_DATA = re.compile(r"^data : (\d+) \(should be \d+\)$", re.MULTILINE)
SUBTYPES = {
    "WAV": {"PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"},
    "FLAC": {"PCM_S8", "PCM_16", "PCM_24"},
    "OGG": {"VORBIS", "OPUS"},
    "MP3": {"MPEG_LAYER_III"},
}
FAMILIAR_MAGIC = {b"\x1aE\xdf\xa3": "WebM or Matroska", b"PK\x03\x04": "ZIP", b"#!AMR": "AMR", b"FORM": "AIFF", b"caff": "CAF"}


@dataclass(frozen=True)
class AudioLimits:
    """The lengths of audio that a caller accepts, and the sample rate that it wants."""

    sample_rate_hz: int
    min_audio_s: float
    max_audio_s: float


class OnceThrough(soundfile.SoundFile):  # type: ignore[misc]
    """A file read once from start to end. Seekable ones seek after every read, which is slow and may fail."""

    def seekable(self) -> bool:
        return False


def decode_audio(data: bytes, limits: AudioLimits) -> Samples:
    """Return all blocks of `decode_blocks` in one piece."""
    return np.concatenate([np.zeros(0, np.float32), *decode_blocks(data, limits)])


def decode_blocks(data: bytes, limits: AudioLimits) -> Iterator[Samples]:
    """Yield mono blocks at `limits.sample_rate_hz`, of about a second each, all finite, together at most `max_audio_s`.

    Raises `UndecodableAudio`, `AudioTooShort`, `AudioTooLong` or `InvalidAudio` as soon as that is seen, which may be after the
    last block. The samples do not depend on how the audio is cut into blocks.
    """
    if not data:
        raise AudioTooShort("The audio is empty.", param="audio")
    container, data = detect_container(data)
    source_rate_hz, blocks = _open(container, data, limits)
    yield from at_rate(_long_enough(mono_blocks(blocks, source_rate_hz, limits), source_rate_hz, limits), source_rate_hz, limits)


def detect_container(data: bytes) -> tuple[Container, bytes]:
    """Return the container by its first bytes, and the data without a leading ID3 tag. Raises `UndecodableAudio`."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "WAV", data
    if data[:4] == b"OggS":
        _check_ogg_codec(data)
        return "OGG", data
    # libsndfile would skip the tag too and then probe for every format that it knows.
    data = _without_id3(data)
    if data[:4] == b"fLaC":
        return "FLAC", data
    if _is_mp3_frame(data[:4]):
        return "MP3", data
    familiar = next((name for magic, name in FAMILIAR_MAGIC.items() if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        familiar = "MP4"
    found = f"This is {familiar}, which is not read" if familiar else "The audio is in no format that is read"
    raise UndecodableAudio(f"{found}; send {FORMATS}.", param="audio")


def first_ogg_packet(data: bytes) -> bytes:
    """Return the data after the first page's header, which is 27 bytes and a segment table; it names the codec."""
    return data[27 + data[26] :] if len(data) > 26 else b""


def _check_ogg_codec(data: bytes) -> None:
    if not first_ogg_packet(data[:512]).startswith((b"OpusHead", b"\x01vorbis")):
        raise UndecodableAudio("The OGG file holds neither Vorbis nor Opus.", param="audio")


def _without_id3(data: bytes) -> bytes:
    if data[:3] != b"ID3" or len(data) < 10:
        return data
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    footer = 10 if data[5] & 0x10 else 0
    return data[10 + size + footer :]


def _is_mp3_frame(header: bytes) -> bool:
    """Return whether four bytes are an MPEG audio layer III frame header with a real bit rate and sample rate."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return False
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bit_rate, sample_rate = header[2] >> 4, header[2] >> 2 & 3
    return version != 1 and layer == 1 and bit_rate not in (0, 15) and sample_rate != 3


def _open(container: Container, data: bytes, limits: AudioLimits) -> tuple[int, Iterator[Frames]]:
    """Return the file's sample rate and an iterator over its blocks."""
    try:
        file = OnceThrough(io.BytesIO(data))
    except soundfile.SoundFileError:
        raise _damaged(container) from None
    # An extensible header says nothing about the samples that the subtype does not say.
    if file.format.removesuffix("EX") != container or file.subtype not in SUBTYPES[container]:
        raise UndecodableAudio(f"The audio is not plain {container}; send {FORMATS}.", param="audio")
    if container == "WAV" and _is_cut_off(file.extra_info):
        raise _damaged(container)
    check_shape(file.samplerate, file.channels)
    _check_length(file.frames, file.samplerate, limits)
    return file.samplerate, _blocks(file, container)


def _is_cut_off(log: str) -> bool:
    """Return whether libsndfile's log of a WAV file says that samples are missing."""
    data = CUT_OFF_DATA.search(log)
    return data is not None and int(data[1]) < STREAMED_BYTES


def _blocks(file: soundfile.SoundFile, container: Container) -> Iterator[Frames]:
    # The average of channels is taken with the precision of the file.
    dtype = "float64" if file.subtype == "DOUBLE" else "float32"
    decoded_frames = 0
    try:
        with file:
            while len(block := file.read(file.samplerate, dtype=dtype, always_2d=True)):
                decoded_frames += len(block)
                yield block
            # Of the compressed formats only FLAC counts its frames exactly in its header, where it counts them at all.
            if container == "FLAC" and decoded_frames < file.frames < UNKNOWN_FRAMES:
                raise UndecodableAudio("The FLAC file is cut off or damaged.", param="audio")
    except soundfile.SoundFileError:
        raise _damaged(container) from None


def _damaged(container: Container) -> UndecodableAudio:
    return UndecodableAudio(f"The {container} file is damaged or cut off.", param="audio")


def mono_blocks(blocks: Iterable[Frames], sample_rate_hz: int, limits: AudioLimits) -> Iterator[Samples]:
    """Yield the blocks averaged over their channels. Raises `AudioTooLong` at the first that reaches beyond the cap."""
    decoded_frames = 0
    for block in blocks:
        decoded_frames += len(block)
        # The count in a header may be wrong.
        _check_length(decoded_frames, sample_rate_hz, limits)
        yield _mono(block)


def _long_enough(blocks: Iterable[Samples], sample_rate_hz: int, limits: AudioLimits) -> Iterator[Samples]:
    frames = 0
    for block in blocks:
        frames += len(block)
        yield block
    if frames < limits.min_audio_s * sample_rate_hz or frames == 0:
        raise AudioTooShort(
            f"The audio lasts {frames / sample_rate_hz:.3f} s; at least {limits.min_audio_s:g} s is needed.", param="audio"
        )


def at_rate(blocks: Iterable[Samples], sample_rate_hz: int, limits: AudioLimits) -> Iterator[Samples]:
    """Yield the blocks at the rate of `limits`, none of them empty, and together not beyond the cap by rounding either."""
    if sample_rate_hz != limits.sample_rate_hz:
        blocks = _resampled(blocks, soxr.ResampleStream(sample_rate_hz, limits.sample_rate_hz, 1, quality="HQ"))
    left = int(limits.max_audio_s * limits.sample_rate_hz)
    for block in blocks:
        if len(block := block[:left]):
            left -= len(block)
            yield block


def _resampled(blocks: Iterable[Samples], resampler: soxr.ResampleStream) -> Iterator[Samples]:
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def check_shape(sample_rate_hz: int, channels: int) -> None:
    """Raise `UndecodableAudio` for a rate or a number of channels that is not read."""
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise UndecodableAudio(
            f"The sample rate of {sample_rate_hz} Hz is outside {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz.", param="audio"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise UndecodableAudio(f"The audio has {channels} channels; 1 to {MAX_CHANNELS} are read.", param="audio")


def _check_length(frames: int, sample_rate_hz: int, limits: AudioLimits) -> None:
    if frames < UNKNOWN_FRAMES and frames > limits.max_audio_s * sample_rate_hz:
        raise AudioTooLong(f"The audio is longer than {limits.max_audio_s:g} s.", param="audio")


def _mono(samples: Frames) -> Samples:
    """Return [frames] float32 for [frames, channels] of any float type. Raises `InvalidAudio` for what cannot be sound."""
    # NaN fails the comparison too.
    if len(samples) and not np.max(np.abs(samples)) <= MAX_AMPLITUDE:
        raise InvalidAudio(
            f"The audio has samples that are not finite or are beyond {MAX_AMPLITUDE:g}; float audio is expected within 1.",
            param="audio",
        )
    if samples.shape[1] == 1:
        return np.ascontiguousarray(samples[:, 0], dtype=np.float32)
    mixed: Frames = samples.mean(axis=1)
    return mixed.astype(np.float32)
