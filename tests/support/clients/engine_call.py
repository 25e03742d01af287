"""One request to any engine, and everything that came of it."""

import threading
import time
from collections.abc import Callable

from server.engine.types.events import Delta, Done, Event, Failed
from server.engine.types.options import SamplingOptions
from server.engine.types.protocol import Engine
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import ServeError
from tests.support.fakes.fake_models import speech

TIMEOUT_S = 60


class Call:
    """Submits a request and collects its events. A refusal counts as an error, whether it was raised or delivered."""

    def __init__(self, engine: Engine, request: InstructRequest, on_event: Callable[[Event], None] | None = None) -> None:
        self.request = request
        self.events: list[Event] = []
        self._on_event = on_event
        self._refusal: ServeError | None = None
        self._ended = threading.Event()
        try:
            engine.submit(request, self._receive)
        except ServeError as error:
            self._refusal = error

    def _receive(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Delta):
            self._ended.set()
        if self._on_event is not None:
            self._on_event(event)

    def outcome(self) -> Done | ServeError:
        """The answer, whose deltas join to it, or the error; the only terminal event, and the last."""
        if self._refusal is not None:
            assert not self.events
            return self._refusal
        assert self._ended.wait(TIMEOUT_S), f"request {self.request.id} never ended"
        *deltas, terminal = self.events
        assert {event.request_id for event in self.events} == {self.request.id}
        text = "".join(event.text for event in deltas if isinstance(event, Delta))
        assert not any(isinstance(event, Done | Failed) for event in deltas)
        if isinstance(terminal, Failed):
            return terminal.error
        assert isinstance(terminal, Done)
        assert terminal.text == text
        return terminal

    def done(self) -> Done:
        outcome = self.outcome()
        assert isinstance(outcome, Done), outcome
        return outcome

    def error(self) -> ServeError:
        outcome = self.outcome()
        assert isinstance(outcome, ServeError), outcome
        return outcome


def request(id: str, seed: int = 1, instruction: str = "Transcribe.", max_tokens: int = 20) -> InstructRequest:
    return InstructRequest(id, speech(seed), SpeechTask(instruction, SamplingOptions(max_tokens=max_tokens, seed=seed)))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true"
        time.sleep(0.005)


def occupied(engine: Engine) -> int:
    stats = engine.stats()
    return stats.waiting + stats.running
