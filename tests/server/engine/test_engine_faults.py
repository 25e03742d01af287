"""The engine when requests leave or fail, and when it stops: other requests are not affected, and every client is told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.protocols import BackendError, Float32
from server.engine.engine import LocalEngine
from server.engine.scheduler.scheduler import Scheduler
from server.errors import EngineFailed, NotReady
from tests.support.clients.engine_call import wait_until
from tests.support.clients.engine_client import NEVER, Client, alone, crowd, instruct, serving, wait_until_idle, without_times
from tests.support.fakes.fake_models import SAMPLE_RATE_HZ, FakeEncoder, FakeLLM, Trouble, fake_models, speech

PLANS = st.lists(st.sampled_from([None, 0, 1, 2, *Trouble]), min_size=12, max_size=12)


@settings(max_examples=30, deadline=None)
@given(PLANS)
def test_leaving_and_failing_requests_do_not_disturb_the_others(plan: list[int | Trouble | None]) -> None:
    with serving() as engine:
        clients = {}
        for index, (request, fate) in enumerate(zip(crowd(12), plan, strict=True)):
            if isinstance(fate, Trouble):
                broken = instruct(request.id, speech(index, 1.0, fate))
                clients[index] = Client(engine, broken)
            else:
                clients[index] = Client(engine, request, leave_after=fate)
        for index, fate in enumerate(plan):
            if fate is None:
                assert without_times(clients[index].done()) == without_times(alone()[index])
            elif isinstance(fate, Trouble):
                clients[index].outcome()
    for client, fate in zip(clients.values(), plan, strict=True):
        if isinstance(fate, int):
            assert len(client.events) <= fate


@pytest.mark.parametrize("trouble", [trouble for trouble in Trouble if trouble is not Trouble.MOVE_RAISES])
def test_a_request_that_breaks_a_stage_fails_alone(trouble: Trouble) -> None:
    requests = crowd(4)
    encoder = FakeEncoder()
    with serving(FakeLLM(slots=5), encoder) as engine:
        encoder.gate.clear()
        clients = [Client(engine, request) for request in requests[:2]]
        broken = Client(engine, instruct("broken", speech(1, 0.5, trouble)))
        clients += [Client(engine, request) for request in requests[2:]]
        encoder.gate.set()
        error = broken.error()
        answers = [without_times(client.done()) for client in clients]
    assert isinstance(error, EngineFailed)
    assert trouble.name not in error.message
    assert answers == [without_times(done) for done in alone()[:4]]


def test_a_request_that_cannot_be_moved_fails_alone() -> None:
    encoder = FakeEncoder()
    requests = crowd(2)
    with serving(FakeLLM(slots=4), encoder) as engine:
        encoder.gate.clear()
        short = Client(engine, instruct("short", speech(5), max_tokens=2))
        others = [Client(engine, request) for request in requests]
        unmovable = Client(engine, instruct("unmovable", speech(3, 0.5, Trouble.MOVE_RAISES)))
        encoder.gate.set()
        short.done()
        assert isinstance(unmovable.error(), EngineFailed)
        assert [without_times(client.done()) for client in others] == [without_times(done) for done in alone()[:2]]


def test_aborting_while_waiting_or_encoding_gives_no_event_and_frees_the_place() -> None:
    encoder = FakeEncoder()
    with serving(FakeLLM(slots=1), encoder, queue_limit=1) as engine:
        encoder.gate.clear()
        gone = [Client(engine, request, leave_after=0) for request in crowd(2)]
        encoder.gate.set()
        wait_until_idle(engine)
        Client(engine, instruct("next", speech(1))).done()
        assert [client.events for client in gone] == [[], []]


def test_an_aborted_request_gives_up_its_place_in_the_queue_at_once() -> None:
    encoder = FakeEncoder()
    with serving(FakeLLM(slots=1), encoder, queue_limit=1) as engine:
        encoder.gate.clear()
        first = Client(engine, instruct("first", speech(1)))
        wait_until(lambda: engine.stats().running == 1)
        for index in range(5):
            Client(engine, instruct(f"gone {index}", speech(2)), leave_after=0)
        last = Client(engine, instruct("last", speech(3)))
        encoder.gate.set()
        first.done()
        last.done()


def test_aborting_while_decoding_gives_no_further_event_and_frees_the_slot() -> None:
    with serving(FakeLLM(slots=1, max_positions=5000, mean_tokens=NEVER), queue_limit=0) as engine:
        gone = Client(engine, instruct("gone", speech(1), max_tokens=4000), leave_after=3)
        wait_until_idle(engine)
        Client(engine, instruct("next", speech(1))).done()
    assert len(gone.events) == 3


def test_when_the_loop_dies_every_request_fails_and_readiness_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FakeEncoder()
    with serving(encoder=encoder) as engine:
        encoder.gate.clear()
        clients = [Client(engine, request) for request in crowd(6)]
        monkeypatch.delattr(Scheduler, "schedule_step")
        encoder.gate.set()
        assert [type(client.error()) for client in clients] == [EngineFailed] * 6
        assert not engine.stats().ready
        with pytest.raises(NotReady):
            Client(engine, instruct("late", speech(1)))


def test_models_that_cannot_run_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Float32:
        raise BackendError("no such operator")

    monkeypatch.setattr(FakeLLM, "decode", broken)
    engine = LocalEngine(fake_models(FakeLLM()), SAMPLE_RATE_HZ, 30.0, queue_limit=4)
    with pytest.raises(BackendError):
        engine.start()
    assert not engine.stats().ready
