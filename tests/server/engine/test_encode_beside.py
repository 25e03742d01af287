"""Encoding beside the LLM's work, as on a GPU: it does overlap, and nothing else is different."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random

import pytest

from models.protocols import DecodeRow, Float32, PrefillRow
from server.engine.engine import LocalEngine
from server.engine.runner.runner import Runner
from server.engine.types.events import Event
from server.engine.types.requests import InstructRequest
from server.errors import EngineFailed, NotReady
from tests.server.engine.test_schedules import answers, asked
from tests.support.clients.engine_call import TIMEOUT_S, wait_until
from tests.support.clients.engine_client import (
    NEVER,
    Client,
    alone,
    crowd,
    instruct,
    serving_models,
    wait_until_idle,
    without_times,
)
from tests.support.fakes.fake_models import FakeEncoder, FakeLLM, Trouble, fake_models, speech
from tests.support.schedules.random_schedules import play_schedules, random_budgets, sequences_left, without_logs

SEEDS = 3
SCHEDULES_PER_SEED = 20


class Meeting:
    """Once armed, one call of the encoder and one of the LLM's waits for the other: neither returns unless both run."""

    def __init__(self, stage: str, encoder_call: int) -> None:
        self.encoder: FakeEncoder = _MeetingEncoder(self)
        self.llm: FakeLLM = _MeetingLLM(self)
        self.then: Callable[[], None] = lambda: None
        self._waiting_for = {stage: 1, "encode": encoder_call}
        self._armed = False
        self._barrier = threading.Barrier(2)

    @property
    def has_been(self) -> bool:
        return not any(self._waiting_for.values())

    def arm(self) -> None:
        self._armed = True

    def come(self, stage: str) -> None:
        if not self._armed or not self._waiting_for.get(stage):
            return
        if self._waiting_for[stage] == 1:
            self._barrier.wait(TIMEOUT_S)
        self._waiting_for[stage] -= 1


class _MeetingEncoder(FakeEncoder):
    def __init__(self, meeting: Meeting) -> None:
        super().__init__()
        self._meeting = meeting

    def encode(self, features: Sequence[Float32]) -> list[Float32]:
        self._meeting.come("encode")
        return super().encode(features)


class _MeetingLLM(FakeLLM):
    def __init__(self, meeting: Meeting) -> None:
        super().__init__(max_positions=5000, mean_tokens=NEVER)
        self._meeting = meeting

    def decode(self, rows: Sequence[DecodeRow]) -> list[Float32]:
        self._meeting.come("decode")
        if self._meeting.has_been:
            self._meeting.then()
        return super().decode(rows)

    def prefill(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        self._meeting.come("prefill")
        return super().prefill(rows)


def encode_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "engine-encode"]


@contextmanager
def serving(
    llm: FakeLLM | None = None, encoder: FakeEncoder | None = None, queue_limit: int = 64, **settings: float
) -> Iterator[LocalEngine]:
    models = replace(fake_models(llm or FakeLLM(), encoder), encodes_beside=True)
    try:
        with serving_models(models, queue_limit, **{"encode_budget_audio_s": 3.0, **settings}) as engine:
            assert encode_threads()
            yield engine
    finally:
        assert not encode_threads()


def running_until(engine: LocalEngine, meeting: Meeting, others: Sequence[InstructRequest]) -> list[Client]:
    """Arm the meeting and submit the others within a step of an answer that runs, so that their encoding is in the next."""
    clients: list[Client] = []
    submitted = threading.Event()

    def submit_others(_event: Event) -> None:
        if not clients:
            meeting.arm()
            clients.extend(Client(engine, request) for request in others)
            submitted.set()

    engine.submit(instruct("running", speech(1), max_tokens=4000), submit_others)
    assert submitted.wait(TIMEOUT_S)
    return clients


def test_a_running_answer_goes_on_while_another_request_is_encoded() -> None:
    meeting = Meeting("decode", encoder_call=1)
    with serving(meeting.llm, meeting.encoder) as engine:
        (client,) = running_until(engine, meeting, [instruct("other", speech(2), max_tokens=3)])
        client.done()
        engine.abort("running")
    assert meeting.has_been


def test_a_running_answer_goes_on_for_as_long_as_another_request_is_heard() -> None:
    encoder = FakeEncoder()
    with serving(FakeLLM(max_positions=5000, mean_tokens=NEVER), encoder) as engine:
        running = Client(engine, instruct("running", speech(1), max_tokens=4000))
        wait_until(lambda: bool(running.events))
        encoder.gate.clear()
        clients = [Client(engine, instruct(f"other {number}", speech(number), max_tokens=3)) for number in range(3)]
        wait_until(lambda: len(encoder.batches) == 3)
        steps = engine.stats().counters.steps
        wait_until(lambda: engine.stats().counters.steps > steps + 20)
        # One batch at a time, whatever came meanwhile.
        assert len(encoder.batches) == 3
        encoder.gate.set()
        for client in clients:
            client.done()
        engine.abort("running")


def test_a_prompt_is_prefilled_while_another_request_is_encoded() -> None:
    meeting = Meeting("prefill", encoder_call=2)
    # One request per encoder batch.
    with serving(meeting.llm, meeting.encoder, encode_budget_audio_s=0.01) as engine:
        others = [instruct(f"other {number}", speech(number), max_tokens=3) for number in range(2)]
        for client in running_until(engine, meeting, others):
            client.done()
        engine.abort("running")
    assert meeting.has_been


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_runs_beside_the_tokens_are_the_same_and_nothing_is_left_over(seed: int) -> None:
    random = Random(seed)
    budgets = random_budgets(random)
    cache_bytes = random.choice([0, 100_000])
    slots = seed % 4 + 1
    with without_logs(), serving(FakeLLM(slots=slots), None, 16, encoder_cache_bytes=cache_bytes, **budgets) as engine:
        answered = play_schedules(engine, random, SCHEDULES_PER_SEED, asked(), answers(), list(Trouble))
        wait_until_idle(engine)
        # The threads are through with the last of them a moment after its client was told.
        wait_until(lambda: not sequences_left())
    assert answered > SCHEDULES_PER_SEED


@pytest.mark.parametrize("trouble", [Trouble.FEATURES_RAISE, Trouble.ENCODE_RAISES, Trouble.ADAPT_RAISES])
def test_a_request_that_cannot_be_heard_fails_alone(trouble: Trouble) -> None:
    requests = crowd(4)
    encoder = FakeEncoder()
    with serving(FakeLLM(slots=5), encoder, encode_budget_audio_s=3.00) as engine:
        encoder.gate.clear()
        clients = [Client(engine, request) for request in requests[:2]]
        broken = Client(engine, instruct("broken", speech(1, 0.5, trouble)))
        clients += [Client(engine, request) for request in requests[2:]]
        encoder.gate.set()
        assert isinstance(broken.error(), EngineFailed)
        assert [without_times(client.done()) for client in clients] == [without_times(done) for done in alone()[:4]]


def test_a_request_aborted_while_it_is_heard_gives_no_event_and_frees_its_place() -> None:
    encoder = FakeEncoder()
    with serving(FakeLLM(slots=1), encoder, queue_limit=0) as engine:
        encoder.gate.clear()
        gone = Client(engine, instruct("gone", speech(1)))
        wait_until(lambda: len(encoder.batches) == 2)
        engine.abort("gone")
        encoder.gate.set()
        wait_until_idle(engine)
        Client(engine, instruct("next", speech(1))).done()
    assert gone.events == []


def test_a_request_aborted_by_what_runs_beside_it_is_not_laid_out() -> None:
    meeting = Meeting("decode", encoder_call=1)
    with serving(meeting.llm, meeting.encoder) as engine:
        meeting.then = lambda: engine.abort("other")
        prefills = meeting.llm.prefills
        (client,) = running_until(engine, meeting, [instruct("other", speech(2))])
        wait_until(lambda: meeting.has_been and engine.stats().running + engine.stats().waiting == 1)
        engine.abort("running")
    assert client.events == []
    assert meeting.llm.prefills == prefills + 1


def test_a_drain_that_runs_out_of_time_while_encoding_fails_the_rest() -> None:
    encoder = FakeEncoder()
    with serving(encoder=encoder) as engine:
        encoder.gate.clear()
        clients = [Client(engine, request) for request in crowd(6)]
        wait_until(lambda: len(encoder.batches) == 2)
        opener = threading.Timer(0.2, encoder.gate.set)
        opener.start()
        engine.drain(0.01)
        opener.join()
        assert [type(client.error()) for client in clients] == [NotReady] * 6


def test_what_breaks_the_encoding_itself_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as engine:
        monkeypatch.delattr("server.engine.runner.encode_stage.attempt")
        client = Client(engine, instruct("a", speech(1)))
        assert isinstance(client.error(), EngineFailed)
        assert not engine.stats().ready


def test_an_engine_that_dies_while_encoding_tells_everybody_and_then_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FakeEncoder()
    with serving(encoder=encoder) as engine:
        encoder.gate.clear()
        # The step breaks between the beginning of the encode_stage and its end.
        monkeypatch.delattr(Runner, "decode")
        clients = [Client(engine, request) for request in crowd(3)]
        assert [type(client.error()) for client in clients] == [EngineFailed] * 3
        assert encode_threads()
        encoder.gate.set()


def test_what_was_heard_before_is_looked_up_once() -> None:
    encoder = FakeEncoder()
    with serving(encoder=encoder, encoder_cache_bytes=2**20) as engine:
        before, batches = engine.stats().counters, len(encoder.batches)
        for number in range(2):
            Client(engine, replace(instruct(f"r{number}", speech(1), f"Instruction {number}"), client="ann")).done()
        counters = engine.stats().counters
    assert counters.encoder_cache_hits - before.encoder_cache_hits == 1
    assert counters.encoder_cache_misses - before.encoder_cache_misses == 1
    assert len(encoder.batches) == batches + 1
