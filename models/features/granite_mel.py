"""Granite-speech's features in numpy: log-mel of 20 ms, two frames of 80 bins side by side.

Follows `GraniteSpeechFeatureExtractor` of transformers, which uses torchaudio's `MelSpectrogram`: 25 ms Hann window in the middle
of a transform of 512 samples, 10 ms hop, mel bins on HTK's scale without normalisation, log10, a floor 8 below the utterance's
maximum.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from models.features.log_mel import HOP_SAMPLES, SAMPLE_RATE_HZ, Float32, triangles, window

TRANSFORM_SAMPLES = 512
MEL_BINS = 80
STACKED = 2


@cache
def mel_filters(mel_bins: int) -> Float32:
    """Return triangular filters [mel_bins, transform / 2 + 1] up to the Nyquist frequency, each with a peak of one."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, mel_bins + 2) / 2595) - 1)
    return triangles(edges, TRANSFORM_SAMPLES).astype(np.float32)


@cache
def centred_window() -> Float32:
    """Return the window with zeros on both sides."""
    hann = window()
    return np.pad(hann, (TRANSFORM_SAMPLES - len(hann)) // 2)


def granite_mel(audio: Float32, mel_bins: int = MEL_BINS) -> Float32:
    """Return features [2 * mel_bins, frames], 50 frames a second; `audio` is mono, at least one window long."""
    samples = np.pad(audio, TRANSFORM_SAMPLES // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(samples, TRANSFORM_SAMPLES)[::HOP_SAMPLES]
    power = np.abs(np.fft.rfft(frames * centred_window(), axis=-1)).astype(np.float32) ** 2
    log_power = np.log10(np.maximum(power @ mel_filters(mel_bins).T, 1e-10))
    scaled = np.asarray(np.maximum(log_power, log_power.max() - 8.0) / 4.0 + 1.0, np.float32)
    even = scaled[: len(scaled) // STACKED * STACKED]
    return np.ascontiguousarray(even.reshape(-1, STACKED * mel_bins).T)


@dataclass(frozen=True)
class GraniteMel:
    """Implements `models.protocols.Features`: Granite-speech's features."""

    sample_rate_hz: ClassVar[int] = SAMPLE_RATE_HZ
    frames_per_s: ClassVar[float] = SAMPLE_RATE_HZ / HOP_SAMPLES / STACKED
    mel_bins: int = MEL_BINS

    def __call__(self, audio: Float32) -> Float32:
        return granite_mel(audio, self.mel_bins)
