"""Several channels to one, so that no channel is lost and none counts twice.

The mean of the channels is wrong for many real recordings: opposite phases cancel, and a silent channel halves the level. Here
the channels are added, each with the sign by which it resembles the strongest one, and the sum is brought to the level of that
one. So two equal channels give one of them, a talker on one of two channels keeps the level, and two talkers are both heard.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from server.audio.types import Frames, Samples

HOP_S = 0.1
FADE_S = 0.005
# Powers and correlations are remembered for about a second.
DECAY = 0.9
# Less correlation than this says nothing about the sign.
CLEAR_CORRELATION = 0.2
MAX_GAIN = 2.0
CENTRE, BASS = "FC", "LFE"
"""FFmpeg's names of the channel for speech and of that for bass, which holds none."""
BESIDE_CENTRE = 0.5


def mix_to_mono(blocks: Iterable[Frames], sample_rate_hz: int, channels: tuple[str, ...]) -> Iterator[Samples]:
    """Yield the mono samples of blocks whose channels have these names.

    The samples do not depend on how the audio is cut into blocks. Of several channels up to `HOP_S` is held back.
    """
    if len(channels) == 1:
        for block in blocks:
            yield np.ascontiguousarray(block[:, 0], dtype=np.float32)
        return
    mixer = _Mixer(sample_rate_hz, channels)
    hop = round(HOP_S * sample_rate_hz)
    held: Frames = np.zeros((0, len(channels)))
    for block in blocks:
        held = np.concatenate([held, block])
        whole = len(held) // hop * hop
        if whole:
            yield np.concatenate([mixer.mix(held[start : start + hop]) for start in range(0, whole, hop)])
            held = held[whole:]
    if len(held):
        yield mixer.mix(held)


class _Mixer:
    """The weights of the channels, which follow the audio hop by hop."""

    def __init__(self, sample_rate_hz: int, channels: tuple[str, ...]) -> None:
        count = len(channels)
        beside = BESIDE_CENTRE if CENTRE in channels else 1.0
        self._shares = np.array([1.0 if name == CENTRE else 0.0 if name == BASS else beside for name in channels])
        self._fade = np.linspace(0, 1, round(FADE_S * sample_rate_hz))[:, None]
        self._products = np.zeros((count, count))
        self._signs = np.ones(count)
        self._weights: npt.NDArray[np.float64] | None = None

    def mix(self, hop: Frames) -> Samples:
        """Return the mono samples of the next `HOP_S`."""
        values = hop.astype(np.float64)
        self._products = DECAY * self._products + values.T @ values
        weights = self._next_weights()
        before = weights if self._weights is None else self._weights
        self._weights = weights
        mixed = values @ weights
        if not np.array_equal(before, weights):
            faded = len(self._fade[: len(values)])
            mixed[:faded] = (values[:faded] * (before + (weights - before) * self._fade[:faded])).sum(axis=1)
        mono: Samples = mixed.astype(np.float32)
        return mono

    def _next_weights(self) -> npt.NDArray[np.float64]:
        powers = np.diag(self._products)
        if not powers.any():
            return np.zeros(len(powers)) if self._weights is None else self._weights
        # A file whose only sound is in the channel for bass has other channels than it says.
        shares = self._shares if (powers * self._shares).any() else np.ones(len(powers))
        strongest = int(np.argmax(powers * shares))
        power = float(powers[strongest])
        scale = np.sqrt(powers * power)
        correlations = np.divide(self._products[strongest], scale, out=np.zeros_like(scale), where=scale > 0)
        signs = np.where(
            np.abs(correlations) < CLEAR_CORRELATION, self._signs * self._signs[strongest], np.where(correlations < 0, -1.0, 1.0)
        )
        # The sum must not turn over when another channel becomes the strongest.
        if (signs * self._signs * powers).sum() < 0:
            signs = -signs
        self._signs = signs
        weights = shares * signs
        mixed_power = float(weights @ self._products @ weights)
        gain = MAX_GAIN if mixed_power * MAX_GAIN**2 <= power else float(np.sqrt(power / mixed_power))
        return weights * gain
