"""The last seconds of a live session's audio, by their places in all of it."""

import numpy as np

from models.protocols import Float32


class RecentAudio:
    """The last samples of a session, addressed by their positions in all of its audio: `start` to `end`.

    Appending costs time for the new samples only, on average: the buffer grows by doubling.
    """

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self._buffer = np.empty(0, np.float32)
        # The position in the session's audio of the buffer's first sample.
        self._origin = 0

    def append(self, samples: Float32) -> None:
        end = self.end + len(samples)
        if end - self._origin > len(self._buffer):
            buffer = np.empty(2 * (end - self.start), np.float32)
            buffer[: self.end - self.start] = self._buffer[self.start - self._origin : self.end - self._origin]
            self._buffer, self._origin = buffer, self.start
        self._buffer[self.end - self._origin : end - self._origin] = samples
        self.end = end

    def between(self, start: int, end: int) -> Float32:
        """Return a copy of [start, end), which must lie within what is kept."""
        if not self.start <= start <= end <= self.end:
            raise ValueError(f"samples {start} to {end} are not within {self.start} to {self.end}")
        return self._buffer[start - self._origin : end - self._origin].copy()

    def forget_before(self, position: int) -> None:
        """Keep nothing from before `position`; the memory is used again when the buffer is full."""
        self.start = max(self.start, min(position, self.end))
