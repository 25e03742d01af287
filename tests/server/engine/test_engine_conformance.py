"""The promises of every engine: in this process, in a child or in two of them, with models or scripted."""

import contextlib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace

import pytest

from server.engine.ipc.client import ProcessEngine
from server.engine.router import EngineRouter
from server.engine.types.events import Delta, Event
from server.engine.types.options import Constraint, Priority, SamplingOptions
from server.engine.types.protocol import Engine
from server.errors import InvalidConstraint, InvalidRequest, NotReady, Overloaded, PromptTooLong, ServeError
from tests.support.clients.engine_call import TIMEOUT_S, Call, occupied, request, wait_until
from tests.support.fakes import engine_children
from tests.support.fakes.engine_children import LONGEST_INSTRUCTION, QUEUE_LIMIT, SLOTS, FileGate
from tests.support.fakes.fake_models import SAMPLE_RATE_HZ
from tests.support.tasks import change_task

FACTORIES = {"local": engine_children.local, "scripted": engine_children.scripted}
KINDS = ["local", "local in a child", "local in a fleet", "scripted", "scripted in a child", "scripted in a fleet"]
FLEET = 2


def make_engine(kind: str, gate: str) -> Engine:
    models, _, place = kind.partition(" in a ")
    if place == "fleet":
        return EngineRouter({f"member {number}": make_engine(f"{models} in a child", gate) for number in range(FLEET)})
    if place == "child":
        factory = f"{engine_children.__name__}:{models}"
        return ProcessEngine(factory, (gate,), SAMPLE_RATE_HZ, 30.0, transcribes=bool, stall_timeout_s=TIMEOUT_S)
    return FACTORIES[models](gate)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> FileGate:
    """Engines answer nothing while it is cleared."""
    return FileGate(tmp_path_factory.mktemp("gate") / "closed")


@pytest.fixture(scope="module")
def shared(kind: str, gate: FileGate) -> Iterator[Engine]:
    engine = make_engine(kind, str(gate.path))
    engine.start()
    yield engine
    engine.drain(TIMEOUT_S)


@pytest.fixture
def engine(shared: Engine, gate: FileGate) -> Iterator[Engine]:
    """One that serves, and that has to be empty again after every test."""
    yield shared
    gate.set()
    wait_until(lambda: occupied(shared) == 0)
    assert shared.stats().ready


@contextlib.contextmanager
def fresh(kind: str, gate: FileGate) -> Iterator[Engine]:
    """An engine that is yet to be started."""
    gate.set()
    engine = make_engine(kind, str(gate.path))
    try:
        yield engine
    finally:
        gate.set()
        engine.drain(TIMEOUT_S)
        assert not engine.stats().ready
        assert occupied(engine) == 0


def test_an_answer_is_its_deltas_and_has_usage_and_times(engine: Engine) -> None:
    done = Call(engine, request("a")).done()
    assert done.text
    assert done.usage.audio_frames > 0
    assert done.usage.output_tokens > 0
    *stages_s, total_s = astuple(done.times)
    assert min(stages_s) >= 0
    assert sum(stages_s) == pytest.approx(total_s)


def test_words_have_times_where_they_are_asked_for(engine: Engine) -> None:
    assert Call(engine, request("a")).done().words is None
    asked = change_task(request("b"), word_times="required")
    done = Call(engine, asked).done()
    assert done.words
    assert " ".join(word.text for word in done.words) == " ".join(done.text.split())
    assert all(0 <= word.start_s <= word.end_s <= len(asked.audio) / SAMPLE_RATE_HZ for word in done.words)


def test_a_place_is_free_as_soon_as_the_answer_is_out(engine: Engine) -> None:
    occupied_at_end: list[int] = []

    def look(event: Event) -> None:
        if not isinstance(event, Delta):
            occupied_at_end.append(occupied(engine))

    Call(engine, request("a"), look).done()
    wait_until(lambda: occupied(engine) == 0)
    for index in range(20):
        Call(engine, request(f"r{index}")).done()
    assert len(occupied_at_end) == 1


def test_every_thread_gets_the_answers_to_its_own_requests(engine: Engine) -> None:
    alone = {seed: Call(engine, request(f"alone{seed}", seed)).done().text for seed in range(4)}
    start = threading.Barrier(4)

    def submit_some(seed: int) -> list[Call]:
        start.wait()
        return [Call(engine, request(f"r{seed}-{index}", seed)) for index in range(10)]

    with ThreadPoolExecutor(4) as pool:
        for seed, calls in zip(alone, pool.map(submit_some, alone), strict=True):
            assert [call.done().text for call in calls] == [alone[seed]] * 10


def test_nothing_follows_an_abort(engine: Engine, gate: FileGate) -> None:
    gate.clear()
    calls = [Call(engine, request(f"r{index}")) for index in range(SLOTS + 2)]
    stays = Call(engine, request("stays"))
    for call in calls:
        engine.abort(call.request.id)
    gate.set()
    stays.done()
    wait_until(lambda: occupied(engine) == 0)
    assert [call.events for call in calls] == [[]] * len(calls)


def test_a_client_may_leave_from_within_a_delivery(engine: Engine) -> None:
    call = Call(engine, request("a"), lambda _event: engine.abort("a"))
    wait_until(lambda: occupied(engine) == 0 and len(call.events) > 0)
    Call(engine, request("b")).done()
    assert len(call.events) == 1


def test_an_abort_of_an_unknown_request_does_nothing(engine: Engine) -> None:
    engine.abort("nobody")
    done = Call(engine, request("a"))
    done.done()
    engine.abort("a")
    Call(engine, request("a")).done()


def test_a_full_engine_refuses_and_serves_what_it_took(engine: Engine, kind: str, gate: FileGate) -> None:
    gate.clear()
    engines = FLEET if kind.endswith("fleet") else 1
    slots, queue_limit = engines * SLOTS, engines * QUEUE_LIMIT
    calls = [Call(engine, request(f"r{index}")) for index in range(slots + queue_limit)]
    stats = engine.stats()
    assert (stats.slots, stats.queue_limit, stats.waiting + stats.running) == (slots, queue_limit, slots + queue_limit)
    error = Call(engine, request("one too many")).error()
    assert isinstance(error, Overloaded)
    assert error.retry_after_s is not None
    gate.set()
    for call in calls:
        call.done()


@pytest.mark.parametrize("priority", [Priority.BATCH, Priority.INTERACTIVE])
def test_a_client_that_fills_the_engine_gives_up_a_place_to_others(
    engine: Engine, kind: str, gate: FileGate, priority: Priority
) -> None:
    if kind.startswith("scripted"):
        pytest.skip("a scripted engine has no scheduler")
    gate.clear()
    stats = engine.stats()
    flood = [
        Call(engine, replace(request(f"r{index}"), client="flood", priority=priority))
        for index in range(stats.slots + stats.queue_limit)
    ]
    # Work of the same priority has as many places beyond the queue as there are slots; the next one takes a place of the flood.
    count = 1 if priority == Priority.BATCH else stats.slots + 1
    others = [Call(engine, replace(request(f"other {index}"), client=f"other {index}")) for index in range(count)]
    wait_until(lambda: any(call.events for call in flood))
    gate.set()
    for other in others:
        other.done()
    errors = [outcome for outcome in (call.outcome() for call in flood) if isinstance(outcome, ServeError)]
    assert [type(error) for error in errors] == [Overloaded]
    assert errors[0].retry_after_s is not None


def check_room(engine: Engine, client: str, priority: Priority) -> ServeError | None:
    """Return the refusal that is certain before there is any audio."""
    try:
        engine.check_room(client, priority)
    except ServeError as refusal:
        return refusal
    return None


def test_a_refusal_is_known_before_there_is_audio(engine: Engine, gate: FileGate) -> None:
    gate.clear()
    stats = engine.stats()
    calls = []
    for index in range(stats.slots + stats.queue_limit):
        assert check_room(engine, "", Priority.BATCH) is None
        calls.append(Call(engine, request(f"r{index}")))
    later = Call(engine, request("one too many")).error()
    # A child tells a moment later that it has decided about all requests.
    wait_until(lambda: check_room(engine, "", Priority.INTERACTIVE) is not None)
    known = check_room(engine, "", Priority.INTERACTIVE)
    assert known is not None
    assert (type(known), known.message) == (Overloaded, later.message)
    assert known.retry_after_s is not None
    gate.set()
    for call in calls:
        call.done()
    wait_until(lambda: check_room(engine, "", Priority.BATCH) is None)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_certain_to_be_refused_is_refused(engine: Engine, kind: str, gate: FileGate, seed: int) -> None:
    if kind.startswith("scripted"):
        pytest.skip("a scripted engine has no scheduler")
    gate.clear()
    chances, known, calls = random.Random(seed), 0, []
    places = engine.stats().slots + engine.stats().queue_limit
    for index in range(3 * places):
        # The number of the client that asks most is the lowest.
        client = f"client {int(chances.random() ** 2 * 6)}"
        priority = chances.choice([Priority.INTERACTIVE, Priority.BATCH])
        refusal = check_room(engine, client, priority)
        call = Call(engine, replace(request(f"r{index}"), client=client, priority=priority))
        if refusal is not None:
            known += 1
            assert isinstance(call.error(), Overloaded)
        calls.append(call)
    # A child that has not decided about the last request makes no refusal certain.
    assert known > 0 or kind != "local"
    gate.set()
    for call in calls:
        call.outcome()


def test_an_id_that_is_being_served_is_refused(engine: Engine, gate: FileGate) -> None:
    gate.clear()
    first = Call(engine, request("same"))
    assert isinstance(Call(engine, request("same")).error(), InvalidRequest)
    gate.set()
    first.done()


def test_a_prompt_that_cannot_fit_is_refused_with_the_reason(engine: Engine) -> None:
    error = Call(engine, request("a", instruction="0" * (LONGEST_INSTRUCTION + 201))).error()
    assert isinstance(error, PromptTooLong)
    assert error.param == "instruction"
    assert error.message == str(error)
    assert "instruction is too long" in error.message


def test_a_constraint_that_no_answer_can_match_is_refused_with_the_reason(engine: Engine, kind: str) -> None:
    if kind.startswith("scripted"):
        pytest.skip("a scripted answer follows nothing")
    sampling = SamplingOptions(constraint=Constraint("regex", "a(b"))
    error = Call(engine, change_task(request("a"), sampling=sampling)).error()
    assert isinstance(error, InvalidConstraint)
    assert (error.param, error.message) == (
        "regex",
        "No answer can match this regex: unclosed group, at character 2 of the regular expression.",
    )


def test_an_answer_matches_its_constraint(engine: Engine, kind: str) -> None:
    if kind.startswith("scripted"):
        pytest.skip("a scripted answer follows nothing")
    sampling = SamplingOptions(constraint=Constraint("choice", '["one ", "two"]'))
    assert Call(engine, change_task(request("a"), sampling=sampling)).done().text in ("one ", "two")


def test_a_client_that_cannot_be_told_harms_nobody_else(engine: Engine, gate: FileGate) -> None:
    def fail(_event: Event) -> None:
        raise RuntimeError("the client's loop is closed")

    gate.clear()
    broken = Call(engine, request("broken"), fail)
    other = Call(engine, request("other"))
    gate.set()
    other.done()
    wait_until(lambda: occupied(engine) == 0)
    assert len(broken.events) == 1


def test_steps_are_counted(engine: Engine) -> None:
    before = engine.stats().counters.steps
    Call(engine, request("a")).done()
    wait_until(lambda: engine.stats().counters.steps > before)


def test_an_engine_takes_nothing_before_its_start_and_after_its_drain(kind: str, gate: FileGate) -> None:
    with fresh(kind, gate) as engine:
        assert not engine.stats().ready
        assert isinstance(Call(engine, request("early")).error(), NotReady)
        assert isinstance(check_room(engine, "", Priority.INTERACTIVE), NotReady)
        engine.start()
        assert engine.stats().ready
        Call(engine, request("in time")).done()
        engine.drain(TIMEOUT_S)
        assert isinstance(Call(engine, request("late")).error(), NotReady)


def test_an_engine_that_was_never_started_can_be_drained(kind: str, gate: FileGate) -> None:
    with fresh(kind, gate) as engine:
        engine.drain(0)


def test_a_drain_finishes_what_runs_and_takes_nothing_new(kind: str, gate: FileGate) -> None:
    with fresh(kind, gate) as engine, ThreadPoolExecutor(1) as pool:
        engine.start()
        gate.clear()
        calls = [Call(engine, request(f"r{index}", index)) for index in range(SLOTS + 2)]
        drained = pool.submit(engine.drain, TIMEOUT_S)
        wait_until(lambda: not engine.stats().ready)
        assert isinstance(Call(engine, request("late")).error(), NotReady)
        gate.set()
        for call in calls:
            call.done()
        drained.result(TIMEOUT_S)


def test_a_drain_that_runs_out_of_time_fails_the_rest(kind: str, gate: FileGate) -> None:
    with fresh(kind, gate) as engine, ThreadPoolExecutor(1) as pool:
        engine.start()
        gate.clear()
        calls = [Call(engine, request(f"r{index}", index)) for index in range(SLOTS + 2)]
        drained = pool.submit(engine.drain, 0.05)
        errors = [call.error() for call in calls]
        gate.set()
        drained.result(TIMEOUT_S)
    assert {type(error) for error in errors} == {NotReady}
    assert [len(call.events) for call in calls] == [1] * len(calls)
