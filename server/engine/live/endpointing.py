"""Endpointing: decides from the probability of speech alone where utterances begin and end, with no clock and no model.

Positions are samples since the session's beginning, and always whole windows of the voice detector.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from server.engine.types.options import VoiceOptions


@dataclass(frozen=True)
class SpeechBegan:
    """An utterance begins at `start`, padding included, which is never before the end of the last one."""

    start: int


@dataclass(frozen=True)
class SpeechPaused:
    """Speech has stopped for a moment. If the utterance is over, it is exactly [start, end)."""

    start: int
    end: int


@dataclass(frozen=True)
class SpeechResumed:
    """Speech goes on after a pause: the utterance was not over."""


@dataclass(frozen=True)
class SpeechOver:
    """The utterance is exactly [start, end)."""

    start: int
    end: int


EndpointEvent = SpeechBegan | SpeechPaused | SpeechResumed | SpeechOver


@dataclass(frozen=True)
class Tuning:
    """The parameters of endpointing that no client chooses.

    An utterance begins with `onset_s` of uninterrupted speech. Within an utterance, windows count as speech down to `hysteresis`
    below the threshold. Speech has paused after `pause_s` of silence, and an utterance keeps that much of the silence after it.
    An utterance that gets too long is cut in its latter half, where the mean probability over `pause_width_s` is lowest.

    A longer pause is noticed later and loses no fewer words; a shorter one is taken back more often. The measurements of these
    values and of `VoiceOptions` are in `training/results/endpointing.md`, by a study in the history (commit c003716).
    """

    onset_s: float = 0.05
    hysteresis: float = 0.15
    pause_s: float = 0.06
    pause_width_s: float = 0.2


DEFAULT_TUNING = Tuning()


class Endpointer:
    """Cuts one session into utterances. Seconds are rounded to whole windows, `max_utterance_s` down.

    An utterance brings `SpeechBegan`, any number of `SpeechPaused` and `SpeechResumed` in turns, then `SpeechOver`, whose start
    and end are those of the `SpeechPaused` just before it, if there is one. Utterances are in order, do not overlap and hold all
    speech that is long enough to begin one. The constructor raises `ValueError` if `max_utterance_s` leaves no room for the
    padding.
    """

    def __init__(self, options: VoiceOptions, window_samples: int, sample_rate_hz: int, tuning: Tuning = DEFAULT_TUNING) -> None:
        def windows(duration_s: float) -> int:
            return round(duration_s * sample_rate_hz / window_samples)

        self._window_samples = window_samples
        self._threshold = options.threshold
        self._silence_threshold = max(options.threshold - tuning.hysteresis, options.threshold / 2)
        self._padding = windows(options.prefix_padding_s)
        self._silence = max(1, windows(options.silence_s))
        self._longest = int(options.max_utterance_s * sample_rate_hz) // window_samples
        self._onset = max(1, windows(tuning.onset_s))
        self._pause = max(1, windows(tuning.pause_s))
        self._half_width = max(1, windows(tuning.pause_width_s / 2))
        if self._longest < self._padding + 2 * self._onset:
            raise ValueError(f"max_utterance_s={options.max_utterance_s} leaves no room for speech after its padding")

        self._windows = 0
        self._floor = 0
        self._speech_on_end = 0
        self._start: int | None = None
        self._silence_from: int | None = None
        self._paused = False
        self._recent: deque[float] = deque(maxlen=self._longest // 2 + self._half_width)

    @property
    def needed_from(self) -> int:
        """The position before which no sample is part of the current utterance or a later one."""
        return self._window_samples * (self._next_start() if self._start is None else self._start)

    @property
    def is_silent(self) -> bool:
        """Whether the current utterance is in a silence, which may become its end."""
        return self._silence_from is not None

    def push(self, probabilities: Iterable[float]) -> list[EndpointEvent]:
        """Take the probability of speech in any number of next windows, and return the events that follow from them."""
        return [event for probability in probabilities for event in self._step(float(probability))]

    def flush(self) -> list[EndpointEvent]:
        """End the current utterance with the audio so far, none of which becomes part of a later one."""
        events: list[EndpointEvent] = [] if self._start is None else [self._over(self._start, self._end())]
        self._floor = self._windows
        self._speech_on_end = 0
        return events

    def _step(self, probability: float) -> Iterator[EndpointEvent]:
        self._windows += 1
        self._recent.append(probability)
        if self._start is None:
            yield from self._await_speech(probability)
        else:
            yield from self._follow_speech(self._start, probability)

    def _await_speech(self, probability: float) -> Iterator[EndpointEvent]:
        self._speech_on_end = self._speech_on_end + 1 if probability >= self._threshold else 0
        if self._speech_on_end >= self._onset:
            yield self._begin(self._next_start())

    def _follow_speech(self, start: int, probability: float) -> Iterator[EndpointEvent]:
        if probability >= self._threshold:
            self._silence_from = None
            if self._paused:
                self._paused = False
                yield SpeechResumed()
        elif probability < self._silence_threshold and self._silence_from is None:
            self._silence_from = self._windows - 1
        silence = 0 if self._silence_from is None else self._windows - self._silence_from
        if silence >= self._silence:
            yield self._over(start, self._end())
            return
        if silence >= self._pause and not self._paused:
            self._paused = True
            yield SpeechPaused(start * self._window_samples, self._end() * self._window_samples)
        if self._windows - start >= self._longest:
            yield from self._cut(start)

    def _cut(self, start: int) -> Iterator[EndpointEvent]:
        """End an utterance that cannot take another window. Outside of a pause, its rest begins the next one."""
        silence_from = self._silence_from
        cut = self._end() if self._paused else self._likeliest_pause()
        yield self._over(start, cut)
        if silence_from is None or cut < silence_from:
            self._silence_from = silence_from
            yield self._begin(cut)

    def _likeliest_pause(self) -> int:
        """Return a window's edge in the utterance's latter half; of several that are equally likely, the last."""
        recent = list(self._recent)
        past = self._windows - len(recent)

        def speech_around(edge: int) -> float:
            around = recent[max(0, edge - self._half_width - past) : edge + self._half_width - past]
            return sum(around) / len(around)

        latest = self._windows - self._onset
        return min(range(latest, self._windows - self._longest // 2 - 1, -1), key=speech_around)

    def _next_start(self) -> int:
        """Return the start of an utterance that begins with the latest speech, or with the next window."""
        return max(self._floor, self._windows - self._speech_on_end - self._padding)

    def _end(self) -> int:
        return self._windows if self._silence_from is None else min(self._silence_from + self._pause, self._windows)

    def _begin(self, start: int) -> SpeechBegan:
        self._start = start
        return SpeechBegan(start * self._window_samples)

    def _over(self, start: int, end: int) -> SpeechOver:
        self._start = self._silence_from = None
        self._paused = False
        self._speech_on_end = 0
        self._floor = end
        return SpeechOver(start * self._window_samples, end * self._window_samples)
