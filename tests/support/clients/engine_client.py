"""A client of the engine on fake models, and requests for it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache

from models.chain import Models
from models.protocols import Float32
from server.engine.engine import LocalEngine
from server.engine.types.events import Delta, Done, Event, Failed
from server.engine.types.options import Constraint, SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from tests.support.fakes.fake_models import SAMPLE_RATE_HZ, FakeEncoder, FakeLLM, fake_models, speech

TIMEOUT_S = 60
NEVER = 2**40


class Client:
    """Collects the events of one request."""

    def __init__(self, engine: LocalEngine, request: InstructRequest, leave_after: int | None = None) -> None:
        self.events: list[Event] = []
        self._engine = engine
        self._request = request
        self._leave_after = leave_after
        self._ended = threading.Event()
        engine.submit(request, self._receive)
        if leave_after == 0:
            self._leave()

    def _receive(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) == self._leave_after:
            self._leave()
        if not isinstance(event, Delta):
            self._ended.set()

    def _leave(self) -> None:
        self._engine.abort(self._request.id)
        self._ended.set()

    def outcome(self) -> Done | Failed:
        """The terminal event: the only one, and the last."""
        assert self._ended.wait(TIMEOUT_S), f"request {self._request.id} never ended"
        *deltas, terminal = self.events
        assert not isinstance(terminal, Delta)
        assert all(isinstance(event, Delta) for event in deltas)
        assert all(event.request_id == self._request.id for event in self.events)
        if isinstance(terminal, Done):
            assert "".join(event.text for event in deltas if isinstance(event, Delta)) == terminal.text
        return terminal

    def done(self) -> Done:
        terminal = self.outcome()
        assert isinstance(terminal, Done), terminal
        return terminal

    def failed(self) -> Failed:
        terminal = self.outcome()
        assert isinstance(terminal, Failed), terminal
        return terminal


def serving(
    llm: FakeLLM | None = None, encoder: FakeEncoder | None = None, queue_limit: int = 64
) -> AbstractContextManager[LocalEngine]:
    return serving_models(fake_models(llm or FakeLLM(), encoder), queue_limit, encode_budget_audio_s=3.0)


@contextmanager
def serving_models(models: Models, queue_limit: int = 64, **options: float) -> Iterator[LocalEngine]:
    """An engine, whose options these are; at the end it is drained and has nothing left."""
    engine = LocalEngine(models, SAMPLE_RATE_HZ, 30.0, queue_limit, **options)  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
    finally:
        engine.drain(TIMEOUT_S)
        stats = engine.stats()
        assert (stats.ready, stats.waiting, stats.running) == (False, 0, 0)


def wait_until_idle(engine: LocalEngine) -> None:
    wait_until(lambda: engine.stats().running + engine.stats().waiting == 0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def instruct(id: str, audio: Float32, instruction: str = "Transcribe.", **sampling: float | Constraint | None) -> InstructRequest:
    return InstructRequest(id, audio, SpeechTask(instruction, SamplingOptions(**{"max_tokens": 40, **sampling})))  # type: ignore[arg-type]


def crowd(count: int) -> list[InstructRequest]:
    """Requests that differ in audio, instruction, length and sampling."""
    return [
        instruct(
            f"r{index}",
            speech(index, duration_s=0.4 + index % 4),
            f"Instruction {index % 3}",
            max_tokens=5 + 7 * (index % 5),
            temperature=0.8 * (index % 2),
            seed=index,
        )
        for index in range(count)
    ]


def answers_alone(requests: Sequence[InstructRequest]) -> list[Done]:
    with serving() as engine:
        return [Client(engine, request).done() for request in requests]


def without_times(done: Done) -> tuple[object, ...]:
    """Return the parts of an answer that must not depend on other requests: all but times, and effects of caches and drafts."""
    return done.request_id, done.text, done.finish_reason, replace(done.usage, cached_tokens=0), done.logprobs


@cache
def alone() -> list[Done]:
    return answers_alone(crowd(12))
