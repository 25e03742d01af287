"""Which token comes next."""

import numpy as np

from models.backends import BackendError, Float32
from server.request import SamplingOptions


class Sampler:
    """Chooses the tokens of one request from its own random stream, so equal seeds repeat a text whatever else runs."""

    def __init__(self, options: SamplingOptions) -> None:
        self._temperature = options.temperature
        self._random = np.random.default_rng(None if options.seed is None else options.seed % 2**64)

    def choose(self, logits: Float32) -> int:
        """A token from logits [vocabulary_size]; raises `BackendError` where they hold NaN or infinity at the top."""
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise BackendError("The logits are not finite.")
        if self._temperature == 0:
            return best
        with np.errstate(over="ignore"):
            weights = np.exp((logits.astype(np.float64) - logits[best]) / self._temperature)
        cumulative = weights.cumsum()
        # In (0, total], so that the token found always has a weight of its own.
        return int(cumulative.searchsorted((1 - self._random.random()) * cumulative[-1]))
