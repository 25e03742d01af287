"""Live sessions of the scripted engine: every second of audio is an utterance, silent or not."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from server.engine.types.events import (
    Delta,
    Done,
    Ended,
    Flushed,
    Listened,
    LiveEvent,
    Partial,
    Problem,
    SpeechStarted,
    StageTimes,
    Usage,
    UtteranceDone,
    Word,
)
from server.engine.types.requests import Audio, ChangeInstruction, EndOfAudio, Flush, InstructRequest, LiveInput, LiveRequest
from server.errors import InvalidRequest, NotReady, Overloaded, ServeError

UTTERANCE_S = 1.0


@dataclass
class FakeSession:
    """One session of the script, with all inputs that were pushed into it."""

    request: LiveRequest
    deliver: Callable[[LiveEvent], None]
    instruction: str
    inputs: list[LiveInput] = field(default_factory=list)
    audio_s: float = 0.0
    answered: int = 0
    started: bool = False


class FakeLive:
    """Scripts `open_live`, `push` and the end of sessions. Utterance n is answered with `f"{instruction} {n}"` within `push`.

    While `listens` is false, or once a session is beyond `listens_until_s`, audio is taken and no event follows, not even
    `Listened`. An engine that `is_silent` has no utterances; those with a number in `problems` end with a `Problem`.
    """

    sample_rate_hz: int

    def __init__(self) -> None:
        self.live_refusal: ServeError | None = None
        self.problems: dict[int, ServeError] = {}
        self.sessions: dict[str, FakeSession] = {}
        self.past_sessions: list[FakeSession] = []
        self._live_lock = threading.RLock()
        self.reset_sessions()

    def reset_sessions(self) -> None:
        """Take up the script of the beginning, and forget sessions that have ended."""
        self.live_limit, self.live_refusal = 4, None
        self.listens, self.listens_until_s, self.is_silent = True, float("inf"), False
        self.tells_word_times = True
        self.past_sessions.clear()
        self.problems.clear()

    def open_live(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        with self._live_lock:
            if not self.takes_sessions():
                raise NotReady("The fake engine is not ready.", retry_after_s=1)
            if self.live_refusal is not None:
                raise self.live_refusal
            self.check_word_times(request)
            if request.id in self.sessions:
                raise InvalidRequest("The fake engine has a session with this id.")
            if len(self.sessions) >= self.live_limit:
                raise Overloaded("The fake engine has too many sessions.", retry_after_s=1)
            self.sessions[request.id] = FakeSession(request, deliver, request.task.instruction)

    def push(self, request_id: str, item: LiveInput) -> None:
        with self._live_lock:
            session = self.sessions.get(request_id)
            if session is None:
                return
            session.inputs.append(item)
            match item:
                case Audio(samples):
                    session.audio_s += len(samples) / self.sample_rate_hz
                    self._listen(session)
                case Flush(marker):
                    self._answer_remainder(session)
                    self._tell_client(session, Flushed(request_id, marker))
                case ChangeInstruction(instruction):
                    session.instruction = instruction
                case EndOfAudio():
                    self._answer_remainder(session)
                    self._end_live(session)

    def go_on_listening(self) -> None:
        """Listen from now on, also to audio that was pushed before."""
        with self._live_lock:
            self.listens, self.listens_until_s = True, float("inf")
            for session in list(self.sessions.values()):
                self._listen(session)

    def end_all_audio(self) -> None:
        """End all sessions, as a drain does."""
        with self._live_lock:
            for id in list(self.sessions):
                self.push(id, EndOfAudio())

    def check_word_times(self, request: InstructRequest | LiveRequest) -> None:
        """Raise `InvalidRequest` if the request needs the times of words, and the script tells none."""
        if request.task.word_times == "required" and not self.tells_word_times:
            raise InvalidRequest("The fake engine cannot tell when a word was said.", param="timestamps")

    def transcribes(self, instruction: str) -> bool:
        return instruction.startswith("Transcribe")

    def takes_sessions(self) -> bool:
        raise NotImplementedError

    def end_session(self, request_id: str) -> None:
        """End a session as if its client had left."""
        with self._live_lock:
            if (session := self.sessions.pop(request_id, None)) is not None:
                self.past_sessions.append(session)

    def _tell_client(self, session: FakeSession, event: LiveEvent) -> None:
        if self.sessions.get(session.request.id) is not session:
            return
        if isinstance(event, Ended):
            self.end_session(session.request.id)
        try:
            session.deliver(event)
        except RuntimeError:
            self.end_session(session.request.id)

    def _listen(self, session: FakeSession) -> None:
        if not self.listens or session.audio_s > self.listens_until_s:
            return
        while not self.is_silent and session.answered + UTTERANCE_S <= session.audio_s:
            self._answer_utterance(session, session.answered + UTTERANCE_S)
        if not self.is_silent and session.audio_s > session.answered:
            self._start(session)
            id, start_s = session.request.id, float(session.answered)
            if session.request.partials:
                self._tell_client(session, Partial(id, session.answered, "so far", " and on", start_s, start_s, session.audio_s))
        self._tell_client(session, Listened(session.request.id, session.audio_s))

    def _start(self, session: FakeSession) -> None:
        if not session.started:
            session.started = True
            self._tell_client(session, SpeechStarted(session.request.id, session.answered, float(session.answered)))

    def _answer_remainder(self, session: FakeSession) -> None:
        if not self.is_silent and session.audio_s > session.answered:
            self._answer_utterance(session, session.audio_s)

    def _answer_utterance(self, session: FakeSession, end_s: float) -> None:
        self._start(session)
        start_s = float(session.answered)
        span_s = (start_s, end_s) if self.tells_word_times else None
        done = fake_done(session.request.id, f"{session.instruction} {session.answered}", span_s)
        id, number = session.request.id, session.answered
        error = self.problems.get(number)
        done_or_not = UtteranceDone(id, number, start_s, end_s, done) if error is None else Problem(id, error, number)
        self._tell_client(session, done_or_not)
        session.answered += 1
        session.started = False

    def _end_live(self, session: FakeSession) -> None:
        id = session.request.id
        if session.request.scope == "utterance":
            self._tell_client(session, Ended(id, session.audio_s))
            return
        self._tell_client(session, Delta(id, "about all"))
        answer = fake_done(id, "about all", None)
        self._tell_client(session, Ended(id, session.audio_s, "transcript", answer=answer))


def even_words(text: str, start_s: float, end_s: float) -> tuple[Word, ...]:
    """Return the words of a text, all equally long."""
    bounds_s = np.linspace(start_s, end_s, len(text.split()) + 1).tolist()
    return tuple(Word(word, *span_s) for word, span_s in zip(text.split(), pairwise(bounds_s), strict=True))


def fake_done(id: str, text: str, span_s: tuple[float, float] | None) -> Done:
    """Return an answer whose words share a span of time evenly; without a span it has no words."""
    words = None if span_s is None else even_words(text, *span_s)
    usage = Usage(audio_frames=12, text_tokens=12, output_tokens=len(text.split()))
    return Done(id, text, "stop", usage, StageTimes(encode_s=0.01, total_s=0.02), words=words)
