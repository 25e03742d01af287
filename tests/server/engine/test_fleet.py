"""Several engines as one: who gets a request, and what becomes of it where one of them is lost, full or not there."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.engine.ipc.client import ProcessEngine, StartError
from server.engine.router import EngineRouter
from server.engine.types.events import Ended, Event
from server.engine.types.stats import EngineCounters
from server.errors import EngineFailed, InvalidRequest, NotReady, Overloaded, PromptTooLong
from tests.server.engine.live.test_live_conformance import live
from tests.server.observability.test_engine_metrics import STATS, samples
from tests.support.clients.engine_call import TIMEOUT_S, Call, request, wait_until
from tests.support.clients.live_client import LiveClient
from tests.support.fakes import engine_children
from tests.support.fakes.engine_children import FileGate
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_models import SAMPLE_RATE_HZ


def child_engine(gate: Path, trouble: Path) -> ProcessEngine:
    factory = f"{engine_children.__name__}:{engine_children.troubled.__name__}"
    paths = (str(gate), str(trouble))
    return ProcessEngine(factory, paths, SAMPLE_RATE_HZ, 30.0, transcribes=bool, stall_timeout_s=TIMEOUT_S)


@pytest.fixture
def members() -> Iterator[list[FakeEngine]]:
    """Two engines that answer nothing until their gates are opened."""
    engines = [FakeEngine(), FakeEngine()]
    for engine in engines:
        engine.gate.clear()
    yield engines
    for engine in engines:
        engine.drain(0)


@pytest.fixture
def fleet(members: list[FakeEngine]) -> EngineRouter:
    fleet = EngineRouter({f"GPU {number}": engine for number, engine in enumerate(members)})
    fleet.start()
    return fleet


def ids(engine: FakeEngine) -> list[str]:
    return [request.id for request in engine.submitted]


def answer(members: list[FakeEngine], calls: list[Call]) -> None:
    for engine in members:
        engine.gate.set()
    for call in calls:
        call.done()


def test_a_request_goes_where_the_smallest_share_of_the_places_is_taken(fleet: EngineRouter, members: list[FakeEngine]) -> None:
    members[0].slots, members[0].queue_limit = 2, 0
    members[1].slots, members[1].queue_limit = 4, 0
    calls = [Call(fleet, request(f"r{index}")) for index in range(6)]
    assert [ids(engine) for engine in members] == [["r0", "r3"], ["r1", "r2", "r4", "r5"]]
    answer(members, calls)


def test_a_session_goes_where_the_smallest_share_of_the_sessions_is(fleet: EngineRouter, members: list[FakeEngine]) -> None:
    clients = [LiveClient(fleet, live(f"s{index}")) for index in range(4)]
    assert [sorted(engine.sessions) for engine in members] == [["s0", "s2"], ["s1", "s3"]]
    for client in clients:
        client.say(np.ones(16_000, np.float32))
        assert isinstance(client.end(), Ended)


def test_an_engine_that_is_not_ready_gets_nothing(fleet: EngineRouter, members: list[FakeEngine]) -> None:
    members[0].drain(0)
    calls = [Call(fleet, request(f"r{index}")) for index in range(3)]
    assert fleet.stats().ready
    assert [len(engine.submitted) for engine in members] == [0, 3]
    answer(members, calls)


@pytest.mark.parametrize("refusal", [Overloaded("Full.", retry_after_s=1), NotReady("Not yet.")])
def test_where_one_refuses_the_next_is_asked(fleet: EngineRouter, members: list[FakeEngine], refusal: Exception) -> None:
    members[0].refusal = refusal
    calls = [Call(fleet, request(f"r{index}")) for index in range(2)]
    assert [len(engine.submitted) for engine in members] == [0, 2]
    answer(members, calls)


def test_where_all_refuse_the_shortest_wait_is_told(fleet: EngineRouter, members: list[FakeEngine]) -> None:
    members[0].refusal = NotReady("Not yet.")
    members[1].refusal = Overloaded("Full.", retry_after_s=9)
    assert Call(fleet, request("a")).error() is members[1].refusal
    members[0].refusal = Overloaded("Full.", retry_after_s=3)
    assert Call(fleet, request("a")).error() is members[0].refusal


def test_what_is_wrong_with_a_request_is_wrong_everywhere(fleet: EngineRouter, members: list[FakeEngine]) -> None:
    members[0].refusal = PromptTooLong("Too long.")
    assert Call(fleet, request("a")).error() is members[0].refusal
    assert ids(members[1]) == []


def test_an_id_is_refused_whichever_engine_serves_it(fleet: EngineRouter, members: list[FakeEngine]) -> None:
    first = Call(fleet, request("same"))
    for number in range(2):
        assert isinstance(Call(fleet, request("same")).error(), InvalidRequest)
        with pytest.raises(InvalidRequest):
            LiveClient(fleet, live("same"))
        Call(fleet, request(f"other {number}"))
    assert ids(members[0]) + ids(members[1]) == ["same", "other 1", "other 0"]
    answer(members, [first])


def test_an_abort_goes_where_the_request_went(fleet: EngineRouter, members: list[FakeEngine]) -> None:
    calls = [Call(fleet, request(f"r{index}")) for index in range(4)]
    fleet.abort("r1")
    fleet.abort("r2")
    fleet.abort("nobody")
    assert [engine.aborted for engine in members] == [["r2"], ["r1"]]
    answer(members, [calls[0], calls[3]])
    assert [call.events for call in calls[1:3]] == [[], []]


def test_a_request_that_ended_leaves_nothing_behind(fleet: EngineRouter, members: list[FakeEngine]) -> None:
    def fail(_event: Event) -> None:
        raise RuntimeError("the client's loop is closed")

    def leave(event: Event) -> None:
        fleet.abort(event.request_id)

    calls = [Call(fleet, request(f"r{index}")) for index in range(6)]
    Call(fleet, request("broken"), fail)
    Call(fleet, request("leaves"), leave)
    fleet.abort("r5")
    LiveClient(fleet, live("ends")).end()
    LiveClient(fleet, live("is aborted"))
    fleet.abort("is aborted")
    members[0].refusal = members[1].refusal = Overloaded("Full.", retry_after_s=1)
    Call(fleet, request("refused")).error()
    answer(members, calls[:5])
    wait_until(lambda: not fleet._routes)
    assert fleet.stats().live_sessions == 0


def test_clients_may_come_and_go_from_many_threads(fleet: EngineRouter, members: list[FakeEngine]) -> None:
    for engine in members:
        engine.gate.set()
        engine.queue_limit = 400
    start = threading.Barrier(8)

    def come_and_go(thread: int) -> None:
        start.wait()
        for index in range(50):
            call = Call(fleet, request(f"{thread} {index}"))
            if index % 3:
                call.done()
            else:
                fleet.abort(call.request.id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(8)))
    assert not fleet._routes
    assert min(len(engine.submitted) for engine in members) > 0
    assert len(members[0].submitted) + len(members[1].submitted) == 400


def test_figures_are_summed_where_a_sum_says_something(
    fleet: EngineRouter, members: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(STATS, step_age_s=0.5, predicted_wait_s=0.75, counters=EngineCounters(steps=1, restarts=2))
    lost = replace(STATS, ready=False, predicted_wait_s=0.0)
    monkeypatch.setattr(members[0], "stats", lambda: STATS)
    monkeypatch.setattr(members[1], "stats", lambda: other)
    one, both = samples(STATS), samples(fleet.stats())
    assert both["ready"] == 1
    assert (both["step_age_seconds"], both["predicted_wait_seconds"]) == (0.5, 0.75)
    for name in ("slots", "queue_limit", "num_requests_waiting", "live_sessions", "live_session_limit", "cache_bytes prefix"):
        assert both[name] == 2 * one[name]
    assert both["engine_steps_total"] == one["engine_steps_total"] + 1
    assert both["engine_restarts_total"] == one["engine_restarts_total"] + 2
    assert both["draft_tokens_total 1"] == one["draft_tokens_total 1"]
    assert not fleet.stats().is_overloaded
    monkeypatch.setattr(members[0], "stats", lambda: replace(STATS, is_overloaded=True))
    assert not fleet.stats().is_overloaded
    monkeypatch.setattr(members[1], "stats", lambda: lost)
    assert fleet.stats().is_overloaded
    assert fleet.stats().predicted_wait_s == STATS.predicted_wait_s
    monkeypatch.setattr(members[0], "stats", lambda: lost)
    assert (fleet.stats().ready, fleet.stats().predicted_wait_s) == (False, 0.0)


def test_a_child_that_is_lost_costs_its_own_requests_only(tmp_path: Path) -> None:
    gate = FileGate(tmp_path / "closed")
    engines = [child_engine(gate.path, tmp_path / f"trouble {number}") for number in range(2)]
    fleet = EngineRouter({f"GPU {number}": engine for number, engine in enumerate(engines)})
    fleet.start()
    gate.clear()
    calls = [Call(fleet, request(f"r{index}")) for index in range(4)]
    lost = engines[0].process_id
    assert lost is not None
    # Its successor does not get ready until it may.
    (tmp_path / "trouble 0").write_text("raise")
    os.kill(lost, signal.SIGKILL)
    for call in calls[::2]:
        assert isinstance(call.error(), EngineFailed)
    assert fleet.stats().ready
    calls = [*calls[1::2], *[Call(fleet, request(f"later {index}")) for index in range(3)]]
    gate.set()
    for call in calls:
        call.done()
    assert not fleet._routes
    (tmp_path / "trouble 0").unlink()
    wait_until(lambda: engines[0].stats().ready)
    assert fleet.stats().counters.restarts >= 1
    Call(fleet, request("afterwards")).done()
    fleet.drain(TIMEOUT_S)


def test_a_start_that_fails_names_the_member_and_leaves_no_process(tmp_path: Path) -> None:
    engines = [child_engine(tmp_path / "closed", tmp_path / f"trouble {number}") for number in range(3)]
    (tmp_path / "trouble 1").write_text("raise")
    (tmp_path / "trouble 2").write_text("hang")
    fleet = EngineRouter({f"GPU {number}": engine for number, engine in enumerate(engines)})
    with pytest.raises(StartError, match=r"^GPU 1: .*the models are broken"):
        fleet.start()
    assert [engine.process_id for engine in engines] == [None] * 3
    assert not fleet.stats().ready
    assert isinstance(Call(fleet, request("late")).error(), NotReady)


def test_a_drain_does_not_wait_for_a_member_that_starts(tmp_path: Path) -> None:
    engines = [child_engine(tmp_path / "closed", tmp_path / f"trouble {number}") for number in range(2)]
    (tmp_path / "trouble 1").write_text("hang")
    fleet = EngineRouter({f"GPU {number}": engine for number, engine in enumerate(engines)})
    starting = threading.Thread(target=fleet.start)
    starting.start()
    wait_until(lambda: engines[0].stats().ready)
    fleet.drain(0)
    starting.join(TIMEOUT_S)
    assert not starting.is_alive()


def test_all_start_and_drain_at_the_same_time(members: list[FakeEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other would wait at the barrier for ever."""

    def together(call: Callable[..., None]) -> Callable[..., None]:
        barrier = threading.Barrier(2)

        def wait_and_call(*arguments: float) -> None:
            barrier.wait(TIMEOUT_S)
            call(*arguments)

        return wait_and_call

    starts, drains = together(lambda: None), together(lambda _timeout_s: None)
    for engine in members:
        monkeypatch.setattr(engine, "start", starts)
        monkeypatch.setattr(engine, "drain", drains)
    fleet = EngineRouter({"GPU 0": members[0], "GPU 1": members[1]})
    fleet.start()
    fleet.drain(1.0)
    monkeypatch.undo()
