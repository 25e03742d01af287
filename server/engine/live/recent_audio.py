"""The last samples of a session, by their position in it."""

import numpy as np

from models.protocols import Float32


class RecentAudio:
    """Samples from `start` to `end`, positions in the session's audio; what is forgotten takes no memory."""

    def __init__(self) -> None:
        self.start = 0
        self._samples = np.empty(0, np.float32)

    @property
    def end(self) -> int:
        return self.start + len(self._samples)

    def append(self, samples: Float32) -> None:
        self._samples = np.concatenate([self._samples, samples])

    def between(self, start: int, end: int) -> Float32:
        """A copy of [start, end), which must lie within what is kept."""
        if not self.start <= start <= end <= self.end:
            raise ValueError(f"samples {start} to {end} are not within {self.start} to {self.end}")
        return self._samples[start - self.start : end - self.start].copy()

    def forget_before(self, position: int) -> None:
        """Keep nothing from before `position`."""
        if position > self.start:
            # A copy, so that the memory in front goes.
            self._samples = self._samples[position - self.start :].copy()
            self.start = position
