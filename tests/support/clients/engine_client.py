"""A client of the engine on fake models, and requests for it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache

from models.chain import Models
from models.protocols import Float32
from server.engine.engine import LocalEngine
from server.engine.types.events import Done, Event
from server.engine.types.options import Constraint, SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from tests.support.clients.engine_call import TIMEOUT_S, Call, wait_until
from tests.support.fakes.fake_models import SAMPLE_RATE_HZ, FakeEncoder, FakeLLM, fake_models, speech

NEVER = 2**40


class Client(Call):
    """Collects the events of one request, and leaves after so many of them. A refusal is raised."""

    def __init__(self, engine: LocalEngine, request: InstructRequest, leave_after: int | None = None) -> None:
        self._engine = engine
        self._leave_after = leave_after
        super().__init__(engine, request)
        if self._refusal is not None:
            raise self._refusal
        if leave_after == 0:
            self._leave()

    def _receive(self, event: Event) -> None:
        super()._receive(event)
        if len(self.events) == self._leave_after:
            self._leave()

    def _leave(self) -> None:
        self._engine.abort(self.request.id)
        self._ended.set()


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
