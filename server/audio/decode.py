"""Decoding of audio files: bytes in, mono float32 samples at the model's rate out.

Decoding goes block by block and stops at the cap on seconds, so a small file that unpacks to hours costs little, and a file that
lasts for hours is never in memory as samples as a whole. This runs native code on hostile bytes, in a child process
(`server.audio.sandbox`).
"""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
import soxr

from server.audio.containers import Container, detect_container, detect_header
from server.audio.mixing import mix_to_mono
from server.audio.raw import RawFormat
from server.audio.reader import SLACK_S, AudioReader, Sound, open_file
from server.audio.types import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, AudioLimits, Frames, Samples
from server.errors import AudioTooLong, AudioTooShort, InvalidAudio, UndecodableAudio

# Stereo at 192 kHz, or eight channels at 48 kHz, may be as long as the cap on seconds says; what is wider, less long.
MAX_VALUES_PER_S = 2 * MAX_RATE_HZ
# Float files are expected within 1; this leaves room for loud masters and none for garbage.
MAX_AMPLITUDE = 1e3
INT16_SCALE = 2.0**15
BLOCK_S = 1.0


def decode_audio(data: bytes, limits: AudioLimits) -> Samples:
    """Return all blocks of `FileDecoder` in one piece."""
    return np.concatenate([np.zeros(0, np.float32), *FileDecoder(data, limits).blocks()])


class FileDecoder:
    """One file on its way to samples: all its channels in one, or one of them.

    `channels` is how many it has at its beginning, once there is a block. After the last block `warnings` says in sentences what
    of the audio was missing.
    """

    def __init__(self, data: bytes, limits: AudioLimits, raw: RawFormat | None = None, channel: int | None = None) -> None:
        """Take a file; `raw` says how to read bytes that have no header. Channels count from 0; None means all in one."""
        self.warnings: tuple[str, ...] = ()
        self.channels = 0
        self._channel = channel
        self._data = data
        self._limits = limits
        self._raw = raw

    def blocks(self) -> Iterator[Samples]:
        """Yield mono blocks at `limits.sample_rate_hz`, of about a second each, all finite, together at most `max_audio_s`.

        Raises `UndecodableAudio`, `AudioTooShort`, `AudioTooLong` or `InvalidAudio` as soon as that is seen, which may be after
        the last block. The samples do not depend on how the audio is cut into blocks.
        """
        limits = self._limits
        if not self._data:
            raise AudioTooShort("The audio is empty.", param="audio")
        reader = self._open()
        if all(reader.shape):
            check_shape(*reader.shape)
        declared_s = reader.declared_s
        if declared_s is not None and declared_s > limits.max_audio_s + SLACK_S:
            raise _too_long(limits)
        sounds = self._count_channels(_long_enough(reader.read(), limits))
        if self._channel is not None:
            sounds = _only_channel(sounds, self._channel)
        yield from mono_at_rate(sounds, limits, block_s=BLOCK_S, warnings=reader.warnings)
        self.warnings = tuple(reader.warnings)

    def _count_channels(self, sounds: Iterable[Sound]) -> Iterator[Sound]:
        for sound in sounds:
            self.channels = self.channels or len(sound.channels)
            yield sound

    def _open(self) -> AudioReader:
        data, raw = self._data, self._raw
        if raw is not None and detect_header(data) is None:
            check_shape(raw.sample_rate_hz, raw.channels)
            return open_file(data, Container("raw", raw.encoding), 0, raw)
        container, start = detect_container(data)
        return open_file(data, container, start)


def mono_at_rate(sounds: Iterable[Sound], limits: AudioLimits, *, block_s: float, warnings: list[str]) -> Iterator[Samples]:
    """Yield mono blocks at the rate of `limits`, none of them empty, gathered to at least `block_s` before they are mixed.

    A file may change its rate or its channels midway. Raises `UndecodableAudio`, `AudioTooLong` or `InvalidAudio`.
    """
    left = int(limits.max_audio_s * limits.sample_rate_hz)
    bounded = _within_bounds(sounds, limits)
    for (rate_hz, channels), alike in groupby(bounded, key=lambda sound: (sound.sample_rate_hz, sound.channels)):
        check_shape(rate_hz, len(channels))
        gathered = _gather((sound.frames for sound in alike), round(block_s * rate_hz))
        mono = mix_to_mono(_check_samples(gathered, warnings), rate_hz, channels)
        for block in _at_rate(mono, rate_hz, limits.sample_rate_hz):
            # The cap must not be passed by rounding either.
            if len(block := block[:left]):
                left -= len(block)
                yield block


def check_shape(sample_rate_hz: int, channels: int) -> None:
    """Raise `UndecodableAudio` for a rate or a number of channels that is not read."""
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise UndecodableAudio(
            f"The sample rate of {sample_rate_hz} Hz is outside {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz.", param="audio"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise UndecodableAudio(f"The audio has {channels} channels; 1 to {MAX_CHANNELS} are read.", param="audio")


def _only_channel(sounds: Iterable[Sound], channel: int) -> Iterator[Sound]:
    """Yield one channel. Raises `InvalidAudio` where the file has fewer, be it midway."""
    for sound in sounds:
        if channel >= len(sound.channels):
            raise InvalidAudio(f"The audio has no channel {channel} from its beginning to its end.", param="audio")
        yield Sound(sound.sample_rate_hz, (sound.channels[channel],), sound.frames[:, channel : channel + 1])


def _within_bounds(sounds: Iterable[Sound], limits: AudioLimits) -> Iterator[Sound]:
    """Yield the sounds. Raises `AudioTooLong` at the first that reaches beyond the cap on seconds or on values."""
    frames: dict[int, int] = {}
    values = 0
    for sound in sounds:
        count, channels = sound.frames.shape
        frames[sound.sample_rate_hz] = frames.get(sound.sample_rate_hz, 0) + count
        values += count * channels
        if sum(number / rate_hz for rate_hz, number in frames.items()) > limits.max_audio_s:
            raise _too_long(limits)
        if values > limits.max_audio_s * MAX_VALUES_PER_S:
            longest_s = limits.max_audio_s * MAX_VALUES_PER_S / (channels * sound.sample_rate_hz)
            shape = f"{channels} channels at {sound.sample_rate_hz} Hz"
            raise AudioTooLong(f"The audio is longer than {longest_s:g} s, the most for {shape}.", param="audio")
        yield sound


def _long_enough(sounds: Iterable[Sound], limits: AudioLimits) -> Iterator[Sound]:
    seconds = 0.0
    for sound in sounds:
        seconds += len(sound.frames) / sound.sample_rate_hz
        yield sound
    # Sums of fractions round; a sample lasts longer than that.
    if seconds < limits.min_audio_s - 1e-9 or not seconds:
        # Rounded down, so that audio that is a sample too short does not seem long enough.
        lasts_s = math.floor(seconds * 1000) / 1000
        raise AudioTooShort(f"The audio lasts {lasts_s:.3f} s; at least {limits.min_audio_s:g} s is needed.", param="audio")


def _gather(blocks: Iterable[Frames], least_frames: int) -> Iterator[Frames]:
    waiting: list[Frames] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count >= least_frames:
            yield np.concatenate(waiting)
            waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _check_samples(blocks: Iterable[Frames], warnings: list[str]) -> Iterator[Frames]:
    """Yield the blocks; those of float files that hold 16-bit integers, divided. Raises `InvalidAudio` for what is no sound."""
    scale = 1.0
    for block in blocks:
        peak = float(np.max(np.abs(block)))
        if scale == 1.0 and 1 < peak <= INT16_SCALE and np.array_equal(block, np.rint(block)):
            scale = INT16_SCALE
            warnings.append("The float samples are 16-bit integers; they were divided by 32768.")
        # NaN fails the comparison too.
        if not peak / scale <= MAX_AMPLITUDE:
            raise InvalidAudio(
                f"The audio has samples that are not finite or are beyond {MAX_AMPLITUDE:g}; float audio is expected within 1.",
                param="audio",
            )
        yield block / scale if scale != 1.0 else block


def _at_rate(blocks: Iterable[Samples], source_rate_hz: int, sample_rate_hz: int) -> Iterator[Samples]:
    if source_rate_hz == sample_rate_hz:
        yield from blocks
        return
    resampler = soxr.ResampleStream(source_rate_hz, sample_rate_hz, 1, quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _too_long(limits: AudioLimits) -> AudioTooLong:
    message = f"The audio is longer than {limits.max_audio_s:g} s; the server's setting max_audio_s may allow more."
    return AudioTooLong(message, param="audio")
