"""Change a recording as rooms, speakers and telephone lines do: speed, gain, noise, band limit."""

import numpy as np
import numpy.typing as npt
import soxr

from models.features.log_mel import SAMPLE_RATE_HZ

Float32 = npt.NDArray[np.float32]


def change_speed(audio: Float32, factor: float) -> Float32:
    """Faster and higher for a factor above 1, as a tape played too fast."""
    return np.asarray(soxr.resample(audio, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ), np.float32)


def add_noise(audio: Float32, signal_to_noise_db: float, rng: np.random.Generator) -> Float32:
    """Pink-like noise at the given ratio to the utterance's own power."""
    white = np.fft.rfft(rng.standard_normal(len(audio)))
    pink = np.fft.irfft(white / np.sqrt(np.arange(1, len(white) + 1)), len(audio))
    scale = np.sqrt(np.mean(audio**2) / (np.mean(pink**2) + 1e-12) / 10 ** (signal_to_noise_db / 10))
    return np.asarray(audio + scale * pink, np.float32)


def limit_band(audio: Float32) -> Float32:
    """Keep what an 8 kHz telephone line keeps."""
    narrow = soxr.resample(audio, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ // 2)
    return np.asarray(soxr.resample(narrow, SAMPLE_RATE_HZ // 2, SAMPLE_RATE_HZ), np.float32)


def augment(audio: Float32, rng: np.random.Generator) -> Float32:
    """One random variant of an utterance; the same generator state gives the same variant."""
    audio = change_speed(audio, rng.uniform(0.88, 1.14))
    if rng.random() < 0.12:
        audio = limit_band(audio)
    if rng.random() < 0.35:
        audio = add_noise(audio, rng.uniform(8, 30), rng)
    return (audio * 10 ** (rng.uniform(-12, 3) / 20)).astype(np.float32)
