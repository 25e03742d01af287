"""Whisper's log-mel features in numpy: one implementation for training and serving.

Follows `WhisperFeatureExtractor` of transformers and `whisper.audio.log_mel_spectrogram`: 25 ms Hann window, 10 ms hop,
80 Slaney mel bins, log10, a floor 8 below the utterance's maximum. Unlike those, audio is not padded to 30 s:
the encoder runs on the utterance's own length.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 400
MEL_BINS = 80
# Audio is padded with silence to a multiple of this, so that encoder states subsampled 4x (12.5 a second) cover all of it.
HOPS_OF_A_FRAME = 8


def hertz_to_mel(hertz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert to Slaney's scale: linear below 1 kHz, logarithmic above."""
    linear = hertz * 3 / 200
    logarithmic = 15 + np.log(np.maximum(hertz, 1000) / 1000) * 27 / np.log(6.4)
    return np.where(hertz < 1000, linear, logarithmic)


def mel_to_hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def triangles(edges: npt.NDArray[np.float64], transform_samples: int) -> npt.NDArray[np.float64]:
    """Return filters [bins, transform_samples / 2 + 1], each with a peak of one; `edges` [bins + 2] are peaks and both ends."""
    bins_hertz = np.linspace(0, SAMPLE_RATE_HZ / 2, transform_samples // 2 + 1)
    rising = (bins_hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins_hertz) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


@cache
def mel_filters(mel_bins: int = MEL_BINS, transform_samples: int = WINDOW_SAMPLES) -> Float32:
    """Return triangular filters of equal area [mel_bins, transform_samples / 2 + 1] up to the Nyquist frequency."""
    nyquist_mel = hertz_to_mel(np.array(SAMPLE_RATE_HZ / 2))
    edges = mel_to_hertz(np.linspace(0, float(nyquist_mel), mel_bins + 2))
    return (triangles(edges, transform_samples) * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


@cache
def window() -> Float32:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES), np.float32)


def log_mel(audio: Float32, mel_bins: int = MEL_BINS, hop_multiple: int = HOPS_OF_A_FRAME, silent_frames: int = 0) -> Float32:
    """Return features [mel_bins, frames], 100 frames per second of padded audio; `audio` is mono, at least one window long.

    It is padded to a whole number of `hop_multiple` hops, and `silent_frames` of silence follow.
    """
    padding = -len(audio) % (hop_multiple * HOP_SAMPLES) + silent_frames * HOP_SAMPLES
    return whole_frames(np.pad(audio, (0, padding)), mel_bins)


def whole_frames(audio: Float32, mel_bins: int = MEL_BINS, block: int | None = None) -> Float32:
    """Return features [mel_bins, whole hops of the audio], with no silence behind the audio, which is mirrored at its ends.

    They are computed in blocks of `block` frames, or all at once. The last bits of a product depend on its size, so only a whole
    block has the same bits, but for the floor, however much audio follows.
    """
    samples = np.pad(audio, WINDOW_SAMPLES // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW_SAMPLES)[::HOP_SAMPLES][: len(audio) // HOP_SAMPLES]
    starts = range(0, len(frames), block or max(1, len(frames)))
    parts = [_log_power(frames[start : start + (block or len(frames))], mel_bins) for start in starts]
    log_power = np.concatenate(parts, axis=1)
    return np.asarray((np.maximum(log_power, log_power.max() - 8.0) + 4.0) / 4.0, np.float32)


def _log_power(frames: Float32, mel_bins: int) -> Float32:
    power = np.abs(np.fft.rfft(frames * window(), axis=-1)).astype(np.float32) ** 2
    return np.asarray(np.log10(np.maximum(mel_filters(mel_bins) @ power.T, 1e-10)), np.float32)


@dataclass(frozen=True)
class LogMel:
    """Implements `models.protocols.Features`: log-mel features of audio that is padded as `log_mel` says."""

    sample_rate_hz: ClassVar[int] = SAMPLE_RATE_HZ
    frames_per_s: ClassVar[float] = SAMPLE_RATE_HZ / HOP_SAMPLES
    mel_bins: int
    hop_multiple: int = HOPS_OF_A_FRAME
    silent_frames: int = 0

    def __call__(self, audio: Float32) -> Float32:
        return log_mel(audio, self.mel_bins, self.hop_multiple, self.silent_frames)


@dataclass(frozen=True)
class WholeFrames:
    """Implements `models.protocols.Features`: log-mel features of the audio's whole hops, and of half a second at least.

    Follows `Qwen3ASRFeatureExtractor` of transformers: only audio below half a second has silence behind it.
    """

    LEAST_SAMPLES: ClassVar[int] = 8_000
    BLOCK_FRAMES: ClassVar[int] = 100

    sample_rate_hz: ClassVar[int] = SAMPLE_RATE_HZ
    frames_per_s: ClassVar[float] = SAMPLE_RATE_HZ / HOP_SAMPLES
    mel_bins: int

    def __call__(self, audio: Float32) -> Float32:
        return whole_frames(np.pad(audio, (0, max(0, self.LEAST_SAMPLES - len(audio)))), self.mel_bins, self.BLOCK_FRAMES)
