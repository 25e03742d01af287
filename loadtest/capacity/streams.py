"""A live session of the simulator: asks for partials and answers by the rules of `server.engine.live`."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from loadtest.capacity.costs import PIECE_S, StageCosts, StreamEvent, StreamProfile, WorkKind, WorkProfile
from loadtest.capacity.engine import SimulatedEngine, SimulatedRequest
from server.engine.live.partials import PARTIAL_WINDOW_S, PartialPace
from server.engine.types.options import Priority, VoiceOptions

ROUNDING_S = 1e-6
# Speech of an utterance after which its hypothesis has a word.
FIRST_WORD_S = 0.5


@dataclass(eq=False)
class SimulatedUtterance:
    """An utterance of a simulated session; `answered_at_s` is when its answer is there, and `over_at_s` when it was over."""

    start_s: float
    partial_due_s: float
    is_silent: bool = False
    end_s: float = 0.0
    has_words: bool = False
    over_at_s: float = math.inf
    answered_at_s: float = math.inf
    answer: SimulatedRequest | None = None
    partial: SimulatedRequest | None = None


@dataclass(frozen=True)
class SimulatedFinal:
    """A final answer: the utterance's bounds in the session's audio, and when it was told, by the same clock."""

    start_s: float
    end_s: float
    at_s: float


@dataclass(eq=False)
class SimulatedStream:
    """One session that begins at `begin_s` and plays its profile once, in real time."""

    profile: StreamProfile
    begin_s: float
    client: str
    engine: SimulatedEngine
    costs: StageCosts
    random: np.random.Generator
    finals: list[SimulatedFinal] = field(default_factory=list)
    partials: int = 0

    def __post_init__(self) -> None:
        self._events = deque(self.profile.events)
        self._current: SimulatedUtterance | None = None
        self._unanswered: deque[SimulatedUtterance] = deque()
        self._pace = PartialPace()

    @property
    def next_due_s(self) -> float:
        """When the session has something for the engine next; infinite if nothing is left."""
        due_s = self._events[0].at_s if self._events else math.inf
        utterance = self._current
        if utterance is not None and self._lacks_partial(utterance):
            due_s = min(due_s, max(utterance.partial_due_s, 0.0))
        return self.begin_s + due_s

    def take_detected(self, now_s: float) -> None:
        """Follow what was heard up to now, and have a hypothesis made if one is due."""
        heard_s = self._heard_s(now_s)
        while self._events and self._events[0].at_s <= heard_s:
            self._follow(self._events.popleft(), now_s)
        self._begin_partial(now_s)

    def list_waits_s(self) -> list[float]:
        """Return, for each recording that was said, the wait from the end of its speech to its last final."""
        waits = []
        for start_s, end_s in self.profile.spoken:
            told = [final.at_s for final in self.finals if final.start_s < end_s and start_s < final.end_s]
            if told:
                waits.append(told[-1] - end_s)
        return waits

    @staticmethod
    def _lacks_partial(utterance: SimulatedUtterance) -> bool:
        return utterance.partial is None and utterance.answer is None and not utterance.is_silent

    def _heard_s(self, now_s: float) -> float:
        """Return how much audio was heard by now; the session's own due times are never missed by rounding."""
        return now_s - self.begin_s + ROUNDING_S

    def _follow(self, event: StreamEvent, now_s: float) -> None:
        if event.kind == "began":
            due_s = event.start_s + VoiceOptions.prefix_padding_s + self._pace.first_wait_s
            self._current = SimulatedUtterance(event.start_s, next_piece_s(due_s))
        elif self._current is None:
            return
        elif event.kind in ("silent", "speaks"):
            self._current.is_silent = event.kind == "silent"
        elif event.kind == "paused":
            self._request_answer(self._current, event.end_s, now_s)
        elif event.kind == "resumed":
            self._withdraw_answer(self._current)
        else:
            self._end_utterance(self._current, event.end_s, now_s)

    def _request_answer(self, utterance: SimulatedUtterance, end_s: float, now_s: float) -> None:
        def end(at_s: float | None) -> None:
            utterance.answered_at_s = math.inf if at_s is None else at_s
            self._release()

        self._drop_partial(utterance)
        utterance.end_s = end_s
        work = self.costs.draw_work("answer", end_s - utterance.start_s, self.random)
        utterance.answer = self._submit(work, Priority.LIVE, end, now_s)

    def _withdraw_answer(self, utterance: SimulatedUtterance) -> None:
        if utterance.answer is not None:
            self.engine.cancel(utterance.answer)
        utterance.answer, utterance.answered_at_s = None, math.inf

    def _drop_partial(self, utterance: SimulatedUtterance) -> None:
        if utterance.partial is not None:
            self.engine.cancel(utterance.partial)
            utterance.partial = None

    def _end_utterance(self, utterance: SimulatedUtterance, end_s: float, now_s: float) -> None:
        if utterance.answer is None or utterance.end_s != end_s:
            self._withdraw_answer(utterance)
            self._request_answer(utterance, end_s, now_s)
        utterance.over_at_s = now_s
        self._unanswered.append(utterance)
        self._current = None
        self._release()

    def _release(self) -> None:
        """Tell the answers whose turn has come."""
        while self._unanswered and self._unanswered[0].answered_at_s < math.inf:
            utterance = self._unanswered.popleft()
            at_s = max(utterance.over_at_s, utterance.answered_at_s) - self.begin_s
            if self.finals:
                at_s = max(at_s, self.finals[-1].at_s)
            self.finals.append(SimulatedFinal(utterance.start_s, utterance.end_s, at_s))

    def _begin_partial(self, now_s: float) -> None:
        utterance, heard_s = self._current, self._heard_s(now_s)
        if utterance is None or not self._lacks_partial(utterance):
            return
        if heard_s < utterance.partial_due_s:
            return
        is_written = utterance.has_words and self._pace.has_time_to_write
        kind: WorkKind = "partial" if is_written else "draft"

        def end(at_s: float | None) -> None:
            utterance.partial = None
            if at_s is None:
                utterance.partial_due_s = next_piece_s(utterance.partial_due_s + PIECE_S)
                return
            took_s = at_s - now_s
            self.partials += 1
            utterance.has_words = heard_s - utterance.start_s > VoiceOptions.prefix_padding_s + FIRST_WORD_S
            pause_s = self._pace.note_hypothesis(took_s, is_draft=not is_written, has_text=utterance.has_words)
            utterance.partial_due_s = next_piece_s(heard_s + pause_s)

        audio_s = min(PARTIAL_WINDOW_S, heard_s - utterance.start_s)
        work = self.costs.draw_work(kind, audio_s, self.random)
        utterance.partial = self._submit(work, Priority.PARTIAL, end, now_s, gives_way=True)

    def _submit(
        self, work: WorkProfile, priority: Priority, end: Callable[[float | None], None], now_s: float, *, gives_way: bool = False
    ) -> SimulatedRequest:
        return self.engine.submit(work, end, now_s, client=self.client, priority=priority, of_session=True, gives_way=gives_way)


def next_piece_s(at_s: float) -> float:
    """Return the end of the piece of audio that brings the moment `at_s`."""
    return math.ceil(at_s / PIECE_S - ROUNDING_S) * PIECE_S
