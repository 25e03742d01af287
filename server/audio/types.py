"""Plain data about audio, for processes that decode nothing themselves."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
"""[samples], mono"""
Frames = npt.NDArray[np.floating]
"""[frames, channels]"""


# The rates and channels that are read, of files and of live audio.
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 192_000
MAX_CHANNELS = 8


@dataclass(frozen=True)
class AudioLimits:
    """The lengths of audio that a caller accepts, and the sample rate that it wants."""

    sample_rate_hz: int
    min_audio_s: float
    max_audio_s: float
