"""NeMo's log-mel features in numpy, each bin normalised over the utterance.

Follows `ParakeetFeatureExtractor` of transformers and `AudioToMelSpectrogramPreprocessor` of NeMo: pre-emphasis, 25 ms symmetric
Hann window in the middle of a transform of 512 samples, 10 ms hop, silence around the audio, Slaney mel bins, natural logarithm.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from models.features.log_mel import HOP_SAMPLES, SAMPLE_RATE_HZ, WINDOW_SAMPLES, Float32, mel_filters

TRANSFORM_SAMPLES = 512
PRE_EMPHASIS = np.float32(0.97)
SMALLEST_POWER = np.float32(2**-24)
SMALLEST_DEVIATION = np.float32(1e-5)


@cache
def symmetric_window() -> Float32:
    """Return the window with zeros on both sides."""
    return np.pad(np.hanning(WINDOW_SAMPLES), (TRANSFORM_SAMPLES - WINDOW_SAMPLES) // 2).astype(np.float32)


def nemo_mel(audio: Float32, mel_bins: int) -> Float32:
    """Return features [mel_bins, whole hops of the audio]; `audio` is mono, at least two hops long."""
    emphasised = np.concatenate([audio[:1], audio[1:] - PRE_EMPHASIS * audio[:-1]])
    samples = np.pad(emphasised, TRANSFORM_SAMPLES // 2)
    frames = np.lib.stride_tricks.sliding_window_view(samples, TRANSFORM_SAMPLES)[::HOP_SAMPLES][: len(audio) // HOP_SAMPLES]
    power = np.abs(np.fft.rfft(frames * symmetric_window(), axis=-1)).astype(np.float32) ** 2
    logarithm = np.log(mel_filters(mel_bins, TRANSFORM_SAMPLES) @ power.T + SMALLEST_POWER)
    centred = logarithm - logarithm.mean(axis=1, keepdims=True)
    return np.asarray(centred / (centred.std(axis=1, ddof=1, keepdims=True) + SMALLEST_DEVIATION), np.float32)


@dataclass(frozen=True)
class NemoMel:
    """Implements `models.protocols.Features`: NeMo's features."""

    sample_rate_hz: ClassVar[int] = SAMPLE_RATE_HZ
    frames_per_s: ClassVar[float] = SAMPLE_RATE_HZ / HOP_SAMPLES
    mel_bins: int

    def __call__(self, audio: Float32) -> Float32:
        return nemo_mel(audio, self.mel_bins)
