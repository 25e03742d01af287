"""One live session of any engine, and everything that came of it."""

import threading
from collections.abc import Callable
from typing import TypeVar

from models.protocols import Float32
from server.engine.types.events import Ended, Failed, Listened, LiveEvent, Partial, Problem, SpeechStarted, UtteranceDone
from server.engine.types.protocol import Engine
from server.engine.types.requests import Audio, EndOfAudio, Flush, LiveRequest
from server.errors import ServeError

TIMEOUT_S = 60
Kind = TypeVar("Kind")


class LiveClient:
    """Opens a session and collects its events; every stable prefix is held to its word as it comes."""

    def __init__(self, engine: Engine, request: LiveRequest, on_event: Callable[[LiveEvent], None] = lambda _event: None) -> None:
        self.request = request
        self.events: list[LiveEvent] = []
        self._engine = engine
        self._on_event = on_event
        self._stable: dict[int, str] = {}
        self._changed = threading.Condition()
        engine.open_live(request, self._receive)

    def _receive(self, event: LiveEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()
        self._on_event(event)

    def say(self, audio: Float32, piece: int | None = None) -> None:
        """Push audio, in pieces of so many samples."""
        for start in range(0, len(audio), piece or max(1, len(audio))):
            self._engine.push(self.request.id, Audio(audio[start : start + (piece or len(audio))]))

    def flush(self, marker: str) -> None:
        self._engine.push(self.request.id, Flush(marker))

    def end(self) -> Ended | Failed:
        """Say that there is no more; the terminal event, which is the only one and the last."""
        self._engine.push(self.request.id, EndOfAudio())
        return self.outcome()

    def outcome(self) -> Ended | Failed:
        self.wait_for(lambda: isinstance(self.events[-1] if self.events else None, Ended | Failed))
        *others, terminal = self.events
        assert isinstance(terminal, Ended | Failed)
        assert not any(isinstance(event, Ended | Failed) for event in others)
        assert {event.request_id for event in self.events} == {self.request.id}
        self.check()
        return terminal

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, TIMEOUT_S), self.events

    def of(self, kind: type[Kind]) -> list[Kind]:
        with self._changed:
            return [event for event in self.events if isinstance(event, kind)]

    def check(self) -> None:
        """Check the promises about every session's events."""
        stable: dict[int, str] = {}
        over: set[int] = set()
        for event in self.events:
            match event:
                case Partial(_, utterance, text):
                    assert utterance not in over
                    assert text.startswith(stable.get(utterance, ""))
                    stable[utterance] = text
                case UtteranceDone(_, utterance) | Problem(utterance=int(utterance)):
                    assert utterance == len(over)
                    over.add(utterance)
        assert [event.utterance for event in self.of(SpeechStarted)] == list(range(len(self.of(SpeechStarted))))
        listened = [event.audio_s for event in self.of(Listened)]
        assert listened == sorted(listened)

    def texts(self) -> list[str]:
        return [event.done.text for event in self.of(UtteranceDone)]

    def error(self) -> ServeError:
        outcome = self.outcome()
        assert isinstance(outcome, Failed), outcome
        return outcome.error
