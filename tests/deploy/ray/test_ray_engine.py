"""An edge and its engine replicas without Ray: a handle of the same shape calls the replicas in this process."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.ray import __main__ as command
from deploy.ray import engine as ray_engine
from deploy.ray.engine import RayEngine
from deploy.ray.frames import read_frame, write_frame
from deploy.ray.replica import REPORTS, EngineReplica
from deploy.ray.scaling import Fleet, choose_count
from models.bundle.schema import Manifest
from server.engine.types.events import Done, Ended
from server.engine.types.requests import Audio, Flush
from server.errors import EngineFailed, InvalidRequest, NotReady, Overloaded
from server.settings import Settings, SettingsError
from tests.server.engine.live.test_live_conformance import live
from tests.support.clients.engine_call import Call, request, wait_until
from tests.support.clients.live_client import LiveClient
from tests.support.fakes.fake_engine import FakeEngine


class ReplicaLostError(Exception):
    """Raised in place of Ray's error about a dead actor."""


class Stream:
    """The answer of one call, which may be cancelled."""

    def __init__(self, frames: AsyncIterator[bytes], handle: "Handle") -> None:
        self._frames, self._handle = frames, handle

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for frame in self._frames:
            if self._handle.is_lost:
                raise ReplicaLostError
            yield frame

    def cancel(self) -> None:
        self._handle.cancelled += 1


class Report:
    """The answer of a replica that is asked for its report; of a silent one, none."""

    def __init__(self, handle: "Handle", number: int) -> None:
        self._handle, self._number = handle, number

    def __await__(self) -> Generator[Any, None, tuple[str, bytes]]:
        return self._wait().__await__()

    async def _wait(self) -> tuple[str, bytes]:
        if self._handle.is_lost:
            raise ReplicaLostError
        if self._number in self._handle.silent:
            await asyncio.Event().wait()
        return await self._handle.replicas[self._number].report()


class Handle:
    """A deployment's handle with two replicas: the first has all calls, and reports are asked of both in turn."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.replicas = [
            EngineReplica("no bundle", Settings().model_dump_json(), self._builder(engine))
            for engine in (self.engine, FakeEngine())
        ]
        self.replica = self.replicas[0]
        self.is_lost = False
        self.silent: set[int] = set()
        # So many calls are never taken.
        self.deaf_calls = 0
        self.cancelled = 0
        self.sessions: list[str] = []
        self._turn = 0

    async def _never(self) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    def _builder(self, engine: FakeEngine) -> Callable[[Path, Settings], FakeEngine]:
        return lambda _bundle, _settings: engine

    def options(self, method_name: str, session_id: str, stream: bool = False) -> Any:
        if (method_name == "report") != (session_id == REPORTS):
            raise AssertionError("only reports are asked for in turn")
        if method_name != "report":
            self.sessions.append(session_id)

        class Method:
            def remote(_self, *arguments: Any) -> Any:  # noqa: N805
                if method_name == "report":
                    self._turn += 1
                    return Report(self, self._turn % len(self.replicas))
                if stream and self.deaf_calls:
                    self.deaf_calls -= 1
                    return Stream(self._never(), self)
                result = getattr(self.replica, method_name)(*arguments)
                return Stream(result, self) if stream else result

        return Method()


@pytest.fixture
def handle() -> Handle:
    return Handle()


@pytest.fixture
def engine(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayEngine]:
    monkeypatch.setattr(ray_engine, "REPORT_INTERVAL_S", 0.02)
    monkeypatch.setattr(ray_engine, "LONGEST_SILENCE_S", 0.5)
    manifest = Manifest.model_construct(name="tiny", sample_rate_hz=16_000, max_audio_s=30.0)
    engine = RayEngine(handle, manifest)
    engine.start()
    yield engine
    handle.engine.gate.set()
    engine.drain(5.0)


def test_a_request_is_answered_as_by_the_engine_itself(engine: RayEngine, handle: Handle) -> None:
    answer, own = Call(engine, request("a")).done(), Call(handle.engine, request("b")).done()
    assert (answer.text, answer.usage) == (own.text, own.usage)
    assert handle.sessions == ["a"]


def test_a_session_hears_its_inputs_in_order(engine: RayEngine, handle: Handle) -> None:
    client = LiveClient(engine, live("s"))
    client.say(np.linspace(0, 1, 16_000, dtype=np.float32), piece=1_000)
    assert isinstance(client.end(), Ended)
    assert set(handle.sessions) == {"s"}


def test_a_refusal_keeps_its_kind(engine: RayEngine, handle: Handle) -> None:
    handle.engine.refusal = Overloaded("Full.", retry_after_s=7)
    error = Call(engine, request("a")).error()
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 7


def test_an_id_that_is_served_is_refused(engine: RayEngine, handle: Handle) -> None:
    handle.engine.gate.clear()
    first = Call(engine, request("same"))
    assert isinstance(Call(engine, request("same")).error(), InvalidRequest)
    handle.engine.gate.set()
    first.done()


def test_an_aborted_request_is_aborted_at_the_replica(engine: RayEngine, handle: Handle) -> None:
    handle.engine.gate.clear()
    call = Call(engine, request("a"))
    wait_until(lambda: bool(handle.engine.submitted))
    engine.abort("a")
    wait_until(lambda: handle.cancelled == 1)
    assert call.events == []


def test_a_lost_replica_fails_its_requests(engine: RayEngine, handle: Handle) -> None:
    handle.engine.gate.clear()
    call = Call(engine, request("a"))
    wait_until(lambda: bool(handle.engine.submitted))
    handle.is_lost = True
    handle.engine.gate.set()
    assert isinstance(call.error(), EngineFailed)


def test_a_silent_replica_loses_its_requests_and_leaves_the_others_ready(
    engine: RayEngine, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "LOST_AFTER_S", 1.0)
    wait_until(lambda: len(engine.stats().members) == 2)
    handle.engine.gate.clear()
    call = Call(engine, request("a"))
    wait_until(lambda: bool(handle.engine.submitted))
    handle.silent = {0}
    assert isinstance(call.error(), EngineFailed)
    wait_until(lambda: handle.cancelled > 0)
    assert len(engine.stats().members) == 1
    assert engine.stats().ready
    handle.silent = set()
    wait_until(lambda: len(engine.stats().members) == 2)


def test_a_request_that_no_replica_takes_is_sent_again(
    engine: RayEngine, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "LOST_AFTER_S", 0.2)
    handle.deaf_calls = 2
    client = LiveClient(engine, live("s"))
    client.say(np.linspace(0, 1, 16_000, dtype=np.float32), piece=1_000)
    assert isinstance(client.end(), Ended)
    assert handle.deaf_calls == 0


def test_without_a_replica_nothing_is_taken(engine: RayEngine, handle: Handle) -> None:
    handle.is_lost = True
    wait_until(lambda: not engine.stats().ready)
    assert isinstance(Call(engine, request("a")).error(), NotReady)


def test_a_drain_answers_what_runs_and_refuses_the_rest(engine: RayEngine, handle: Handle) -> None:
    handle.engine.gate.clear()
    call = Call(engine, request("a"))
    wait_until(lambda: bool(handle.engine.submitted))
    handle.engine.gate.set()
    engine.drain(20.0)
    assert isinstance(call.outcome(), Done)
    assert isinstance(Call(engine, request("b")).error(), NotReady)


def test_a_drain_that_runs_out_of_time_fails_the_rest(engine: RayEngine, handle: Handle) -> None:
    handle.engine.gate.clear()
    call = Call(engine, request("a"))
    wait_until(lambda: bool(handle.engine.submitted))
    engine.drain(0.0)
    assert isinstance(call.error(), NotReady)


def test_counters_go_on_when_a_replica_is_gone(engine: RayEngine, handle: Handle) -> None:
    Call(engine, request("a")).done()
    wait_until(lambda: engine.stats().counters == handle.engine.stats().counters)
    before = engine.stats().counters
    handle.is_lost = True
    wait_until(lambda: not engine.stats().members)
    assert engine.stats().counters == before


def test_frames_hold_what_was_written() -> None:
    audio, flush = read_frame(write_frame(Audio(np.arange(4, dtype=np.float32)), Flush("marker")))
    assert list(audio.samples) == [0, 1, 2, 3]
    assert flush == Flush("marker")


def test_a_replica_whose_engine_stays_away_is_unhealthy(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    handle.replica.check_health()
    handle.engine.drain(0)
    handle.replica.check_health()
    monkeypatch.setattr(handle.replica, "_ready_at_s", -1e9)
    with pytest.raises(RuntimeError, match="not ready"):
        handle.replica.check_health()


def test_a_replica_tells_what_it_is_scaled_by(handle: Handle) -> None:
    assert set(asyncio.run(handle.replica.record_autoscaling_stats())) == {"predicted_wait_s", "taken_share"}


def test_an_unexpected_failure_of_submit_is_the_servers_fault(engine: RayEngine, handle: Handle) -> None:
    handle.engine.refusal = ValueError("a bug")
    assert isinstance(Call(engine, request("a")).error(), EngineFailed)


@pytest.mark.parametrize(
    ("count", "waits_s", "taken", "wanted"),
    [
        (2, [0.0, 0.0], [0.5, 0.5], 2),
        (2, [2.0, 3.0], [1.0, 1.0], 3),
        (2, [0.0, 3.0], [0.3, 0.9], 2),
        (2, [0.0, 0.0], [0.9, 0.9], 3),
        (3, [0.0, 0.0, 0.0], [0.1, 0.2, 0.1], 2),
        (1, [0.0], [0.0], 1),
        (2, [], [], 2),
    ],
)
def test_replicas_are_added_where_requests_wait(count: int, waits_s: list[float], taken: list[float], wanted: int) -> None:
    assert choose_count(count, waits_s, taken) == wanted


@pytest.mark.parametrize(("text", "fleet"), [("2", Fleet(2, 2)), ("2-8", Fleet(2, 8))])
def test_engines_are_a_number_or_a_range(text: str, fleet: Fleet) -> None:
    options = command.build_parser().parse_args(["serve", f"--engines={text}"])
    assert command.read_fleet(options, Settings()) == fleet


@pytest.mark.parametrize("text", ["none", "0", "3-2", "-2"])
def test_other_engines_are_refused(text: str) -> None:
    options = command.build_parser().parse_args(["serve", f"--engines={text}"])
    with pytest.raises(SettingsError, match="--engines takes"):
        command.read_fleet(options, Settings())


def test_an_edge_has_the_doors_of_all_its_engines() -> None:
    wide = command.edge_settings(Settings(slots=4, queue_limit=16, live_sessions=16), 3)
    assert (wide.slots + wide.queue_limit, wide.live_sessions) == (60, 48)
