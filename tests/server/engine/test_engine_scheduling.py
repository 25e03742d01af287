"""Deadlines, priorities, fair shares and predicted waits, as clients of the engine meet them."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from models.protocols import Float32, PrefillRow
from server.engine.engine import LocalEngine
from server.engine.types.events import Delta, Event, Failed
from server.engine.types.options import Priority
from server.engine.types.requests import InstructRequest
from server.errors import DeadlineUnmeetable, Overloaded, RequestTimedOut
from tests.support.clients.engine_call import TIMEOUT_S, wait_until
from tests.support.clients.engine_client import NEVER, Client, alone, crowd, instruct, serving, wait_until_idle, without_times
from tests.support.fakes.fake_models import SAMPLE_RATE_HZ, FakeEncoder, FakeLLM, fake_models, speech


def endless(id: str, **fields: object) -> InstructRequest:
    return replace(instruct(id, speech(7), max_tokens=100_000), **fields)  # type: ignore[arg-type]


def endless_llm(slots: int) -> FakeLLM:
    return FakeLLM(slots, max_positions=100_000, mean_tokens=NEVER)


def test_a_deadline_that_passes_while_a_request_waits_ends_it_and_frees_its_place() -> None:
    with serving(endless_llm(slots=1), queue_limit=1) as engine:
        running = Client(engine, endless("running"))
        wait_until(lambda: bool(running.events))
        # More than an answer is believed to cost: a deadline that cannot be met would be refused at once.
        late = Client(engine, replace(instruct("late", speech(1)), deadline_s=1.0))
        error = late.error()
        assert isinstance(error, RequestTimedOut)
        assert error.status == 504
        waiting = Client(engine, instruct("next", speech(1), max_tokens=2))
        engine.abort("running")
        waiting.done()


def test_a_deadline_that_passes_while_a_request_runs_ends_it() -> None:
    with serving(endless_llm(slots=1)) as engine:
        late = Client(engine, endless("late", deadline_s=1.0))
        assert isinstance(late.error(), RequestTimedOut)
        assert any(isinstance(event, Delta) for event in late.events)
        Client(engine, instruct("next", speech(1), max_tokens=2)).done()


def test_no_answer_is_delivered_after_its_deadline() -> None:
    class SlowLLM(FakeLLM):
        """An LLM whose prefill, which gives the only token, ends after the deadline."""

        def prefill(self, rows: Sequence[PrefillRow]) -> list[Float32]:
            time.sleep(0.3)
            return super().prefill(rows)

    with serving(SlowLLM(slots=1)) as engine:
        late = Client(engine, replace(instruct("late", speech(1), max_tokens=1), deadline_s=0.2))
        assert isinstance(late.error(), RequestTimedOut)


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    with serving(FakeLLM(slots=1, mean_tokens=NEVER)) as engine:
        for index in range(3):
            Client(engine, instruct(f"r{index}", speech(index))).done()
        with pytest.raises(DeadlineUnmeetable) as refusal:
            Client(engine, replace(instruct("hopeless", speech(1)), deadline_s=1e-6))
        Client(engine, replace(instruct("easy", speech(1)), deadline_s=TIMEOUT_S)).done()
    assert refusal.value.status == 429
    assert refusal.value.retry_after_s is not None
    assert refusal.value.retry_after_s >= 1


def test_waits_are_predicted_and_limited() -> None:
    encoder = FakeEncoder()
    engine = LocalEngine(
        fake_models(FakeLLM(slots=1, mean_tokens=NEVER), encoder), SAMPLE_RATE_HZ, 30.0, 64, max_queue_wait_s=1e-6
    )
    engine.start()
    Client(engine, instruct("first", speech(1))).done()
    wait_until_idle(engine)
    assert engine.stats().predicted_wait_s == 0
    encoder.gate.clear()
    running = Client(engine, instruct("running", speech(2)))
    wait_until(lambda: engine.stats().running == 1)
    assert engine.stats().predicted_wait_s > 0
    with pytest.raises(Overloaded) as refusal:
        Client(engine, instruct("refused", speech(1)))
    # No audio is short enough.
    assert engine.stats().is_overloaded
    with pytest.raises(Overloaded):
        engine.check_room("another client", Priority.INTERACTIVE)
    encoder.gate.set()
    running.done()
    wait_until(lambda: not engine.stats().is_overloaded)
    engine.drain(TIMEOUT_S)
    assert refusal.value.retry_after_s == 1


def test_live_speech_preempts_batch_work_whose_answer_stays_the_same() -> None:
    requests = [replace(request, priority=Priority.BATCH) for request in crowd(3)]
    live = replace(instruct("live", speech(9), max_tokens=5), priority=Priority.LIVE)
    started = threading.Event()
    with serving(FakeLLM(slots=3)) as engine:
        lives: list[Event] = []

        class Interrupting(Client):
            """As soon as there is text of its answer, live speech comes."""

            def _receive(self, event: Event) -> None:
                if not self.events:
                    engine.submit(replace(live, id=f"live {event.request_id}"), lives.append)
                    started.set()
                super()._receive(event)

        answers = [without_times(client.done()) for client in [Interrupting(engine, request) for request in requests]]
        wait_until_idle(engine)
        assert started.is_set()
        assert engine.stats().counters.preemptions > 0
        assert [type(event).__name__ for event in lives if not isinstance(event, Delta)] == ["Done"] * 3
    assert answers == [without_times(done) for done in alone()[:3]]


def test_live_speech_does_not_wait_for_batch_work() -> None:
    with serving(endless_llm(slots=2)) as engine:
        batch = [Client(engine, endless(f"batch {index}", priority=Priority.BATCH), leave_after=None) for index in range(2)]
        wait_until(lambda: all(client.events for client in batch))
        live = replace(instruct("live", speech(1), max_tokens=3), priority=Priority.LIVE)
        Client(engine, live).done()
        for index in range(2):
            engine.abort(f"batch {index}")


def test_the_heartbeat_ages_while_a_step_hangs() -> None:
    encoder = FakeEncoder()
    with serving(encoder=encoder) as engine:
        assert engine.stats().step_age_s == 0
        encoder.gate.clear()
        client = Client(engine, instruct("a", speech(1)))
        wait_until(lambda: engine.stats().step_age_s > 0.05)
        steps = engine.stats().counters.steps
        encoder.gate.set()
        client.done()
        wait_until_idle(engine)
        wait_until(lambda: engine.stats().step_age_s == 0)
        assert engine.stats().counters.steps > steps


def test_counters_add_up() -> None:
    with serving() as engine:
        dones = [Client(engine, request).done() for request in crowd(6)]
        counters = engine.stats().counters
    assert counters.generated_tokens >= sum(done.usage.output_tokens for done in dones)
    assert sum(counters.drafted) >= sum(counters.accepted) > 0
    assert counters.prefix_hits > 0
    assert counters.llm_passes >= sum(done.speculation.llm_passes for done in dones) / 3


@pytest.mark.parametrize("events", [0, 1, 4])
def test_an_abort_frees_everything_within_a_step(events: int) -> None:
    with serving(endless_llm(slots=1)) as engine:
        steps_at_abort: list[int] = []

        def receive(event: Event) -> None:
            assert not isinstance(event, Failed)
            seen.append(event)
            if len(seen) == events:
                steps_at_abort.append(engine.stats().counters.steps)
                engine.abort(event.request_id)

        seen: list[Event] = []
        engine.submit(endless("gone"), receive)
        if events == 0:
            steps_at_abort.append(engine.stats().counters.steps)
            engine.abort("gone")
        wait_until_idle(engine)
        assert engine.stats().counters.steps <= steps_at_abort[0] + 1
        assert len(seen) == events


def test_a_request_may_be_aborted_while_it_is_being_failed() -> None:
    with serving(endless_llm(slots=1)) as engine:
        running = Client(engine, endless("running"))
        wait_until(lambda: bool(running.events))
        ended: list[Event] = []

        def end_both(event: Event) -> None:
            ended.append(event)
            for id in ("a", "b"):
                engine.abort(id)

        for id in ("a", "b"):
            engine.submit(replace(instruct(id, speech(1)), deadline_s=0.3), end_both)
        wait_until(lambda: engine.stats().waiting == 0)
        engine.abort("running")
        Client(engine, instruct("next", speech(1), max_tokens=2)).done()
        assert len(ended) == 1
