"""The audio of a live session: voice detection, turn by turn, and the last seconds."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.protocols import Float32, VoiceDetector, VoiceState
from server.engine.types.requests import Audio, ChangeInstruction, EndOfAudio, Flush, LiveInput

# Limits of one session's turn, so that the other sessions do not wait for long.
TURN_S = 0.5
TURN_INPUTS = 64


@dataclass(frozen=True)
class DetectedAudio:
    """The next samples of a session, and the probability of speech in each window that they complete.

    The last `padding` samples are silence behind the end of the audio.
    """

    samples: Float32
    probabilities: Float32
    padding: int = 0


DetectedInput = DetectedAudio | ChangeInstruction | Flush | EndOfAudio


class VoiceInputs:
    """The inputs of one session that wait for voice detection. Any thread may `push`; one thread calls `detect_voice`."""

    def __init__(self, detector: VoiceDetector, sample_rate_hz: int) -> None:
        self._detector = detector
        self._turn_samples = round(TURN_S * sample_rate_hz)
        self._waiting: deque[LiveInput] = deque()
        self._state: VoiceState | None = None
        # Samples that do not fill a window yet.
        self._rest = np.empty(0, np.float32)

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, item: LiveInput) -> None:
        self._waiting.append(item)

    def detect_voice(self) -> list[DetectedInput]:
        """Return the next inputs in order: at most `TURN_INPUTS` of them with at most `TURN_S` of audio.

        Audio in a row becomes one piece, and of several new instructions in a row only the last is returned.
        """
        detected: list[DetectedInput] = []
        pieces: list[Float32] = []
        room = self._turn_samples
        for _ in range(min(TURN_INPUTS, len(self._waiting))):
            item = self._waiting.popleft()
            if isinstance(item, Audio):
                pieces.append(item.samples[:room])
                if len(item.samples) >= room:
                    self._waiting.appendleft(Audio(item.samples[room:]))
                    break
                room -= len(item.samples)
                continue
            detected += self._detect(pieces)
            pieces = []
            if isinstance(item, EndOfAudio):
                detected += self._detect_rest()
            elif isinstance(item, ChangeInstruction) and detected and isinstance(detected[-1], ChangeInstruction):
                detected.pop()
            detected.append(item)
        return detected + self._detect(pieces)

    def _detect(self, pieces: Sequence[Float32], padding: int = 0) -> list[DetectedInput]:
        if not sum(map(len, pieces)):
            return []
        samples = np.concatenate(pieces)
        audio = np.concatenate([self._rest, samples])
        whole = len(audio) - len(audio) % self._detector.window_samples
        probabilities = np.empty(0, np.float32)
        if whole:
            probabilities, self._state = self._detector.detect(audio[:whole], self._state)
        self._rest = audio[whole:].copy()
        return [DetectedAudio(samples, probabilities, padding)]

    def _detect_rest(self) -> list[DetectedInput]:
        """Fill the last window with silence."""
        padding = -len(self._rest) % self._detector.window_samples
        return self._detect([np.zeros(padding, np.float32)], padding)


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
