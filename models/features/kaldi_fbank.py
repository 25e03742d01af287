"""Kaldi's log-mel features in numpy, each bin normalised over the utterance, two frames in one.

Follows `SeamlessM4TFeatureExtractor` of transformers: samples as of 16 bits, 25 ms Povey window without the mean, pre-emphasis,
a transform of 512 samples, 10 ms hop, 80 triangles on Kaldi's mel scale from 20 Hz on, natural logarithm.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from models.features.log_mel import HOP_SAMPLES, MEL_BINS, SAMPLE_RATE_HZ, WINDOW_SAMPLES, Float32
from models.features.nemo_mel import PRE_EMPHASIS, TRANSFORM_SAMPLES

STACKED = 2
LOWEST_HZ = 20.0
SMALLEST_POWER = np.float32(2**-23)
SMALLEST_VARIANCE = np.float32(1e-7)


@cache
def povey_window() -> Float32:
    return np.asarray(np.hanning(WINDOW_SAMPLES) ** 0.85, np.float32)


@cache
def kaldi_filters(mel_bins: int) -> Float32:
    """Return filters [mel_bins, TRANSFORM_SAMPLES / 2 + 1], which are triangles on the mel scale."""
    hertz = np.linspace(0, SAMPLE_RATE_HZ / 2, TRANSFORM_SAMPLES // 2 + 1)
    lowest, highest, mels = (1127 * np.log(1 + each / 700) for each in (LOWEST_HZ, SAMPLE_RATE_HZ / 2, hertz))
    edges = np.linspace(lowest, highest, mel_bins + 2)
    width = edges[1] - edges[0]
    return np.asarray(np.maximum(0, 1 - np.abs(mels - edges[1:-1, None]) / width), np.float32)


def kaldi_fbank(audio: Float32, mel_bins: int = MEL_BINS) -> Float32:
    """Return features [2 * mel_bins, frames], 50 a second of whole windows; `audio` is mono, at least three hops long."""
    samples = np.pad(audio, (0, max(0, WINDOW_SAMPLES + HOP_SAMPLES - len(audio)))) * np.float32(2**15)
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW_SAMPLES)[::HOP_SAMPLES]
    centred = frames - frames.mean(axis=1, keepdims=True)
    emphasised = centred - PRE_EMPHASIS * np.concatenate([centred[:, :1], centred[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(emphasised * povey_window(), TRANSFORM_SAMPLES, axis=-1)).astype(np.float32) ** 2
    logarithm = np.log(np.maximum(power @ kaldi_filters(mel_bins).T, SMALLEST_POWER))
    deviation = np.sqrt(logarithm.var(axis=0, ddof=1) + SMALLEST_VARIANCE)
    normalised = ((logarithm - logarithm.mean(axis=0)) / deviation).astype(np.float32)
    even = normalised[: len(normalised) // STACKED * STACKED]
    return np.ascontiguousarray(even.reshape(-1, STACKED * mel_bins).T)


@dataclass(frozen=True)
class KaldiFbank:
    """Implements `models.protocols.Features`: Kaldi's features."""

    sample_rate_hz: ClassVar[int] = SAMPLE_RATE_HZ
    frames_per_s: ClassVar[float] = SAMPLE_RATE_HZ / HOP_SAMPLES / STACKED
    mel_bins: int = MEL_BINS

    def __call__(self, audio: Float32) -> Float32:
        return kaldi_fbank(audio, self.mel_bins)
