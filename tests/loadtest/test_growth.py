"""The growth command: every kind of call goes as it should, and what is left behind is judged."""

from dataclasses import replace

import numpy as np
import pytest

from loadtest.growth import Call, Caller, Growth, ask, ask_for_events, be_refused, leave_early, make_calls
from loadtest.hostile.target import RATE_HZ, Target
from loadtest.live.audio import StreamAudio
from loadtest.support.footprint import Footprint
from loadtest.support.leaks import Look
from tests.support.clients.live_server import scripted_engine_server, tone, wait_until
from tests.support.clients.stream_client import metric

SAMPLES = (tone(1.0, RATE_HZ) * 32_767).astype(np.int16)


@pytest.mark.parametrize(
    ("call", "seeds"),
    # The fourth mistake is a deadline that the scripted engine keeps.
    [(ask, range(2)), (ask_for_events, range(2)), (be_refused, [0, 1, 2, 3, 5]), (leave_early, range(6))],
    ids=["files", "events", "refused", "left"],
)
def test_calls_go_as_their_kind_says(call: Call, seeds: range) -> None:
    with scripted_engine_server() as (_, server):
        caller = Caller(Target(server.url, SAMPLES), StreamAudio(SAMPLES, ()), b"")
        assert make_calls(call, caller, seeds, concurrency=2) == []
        wait_until(lambda: metric(server, "instruct_in_flight") == 0)
        wait_until(lambda: metric(server, "stream_sockets") == 0)


def test_calls_that_go_otherwise_are_told() -> None:
    with scripted_engine_server() as (engine, server):
        caller = Caller(Target(server.url, SAMPLES), StreamAudio(SAMPLES, ()), b"")
        engine.drain(0)
        assert make_calls(ask, caller, [1], concurrency=1) == ["status 503"]
    (complaint,) = make_calls(ask, caller, [1], concurrency=1)
    assert "refused" in complaint


QUIET = Look(0, {}, [Footprint(1, "server", 100.0, 30, 8), Footprint(2, "server.engine.ipc.main", 400.0, 20, 5)])


def grown(mib: float, files: int = 0) -> Look:
    server, engine = QUIET.processes
    return replace(QUIET, sessions=500, processes=[server, replace(engine, anonymous_mib=400.0 + mib, files=20 + files)])


@pytest.mark.parametrize(
    ("after", "wrong", "is_good"),
    [
        (grown(0.0), [], True),
        (grown(0.9), [], True),
        (grown(1.1), [], False),
        (grown(0.0, files=1), [], False),
        (grown(0.0), ["status 500"], False),
    ],
)
def test_what_calls_leave_behind_is_judged(after: Look, wrong: list[str], is_good: bool) -> None:
    growth = Growth("files", [QUIET, after], wrong)
    assert growth.is_good == is_good


def test_one_look_that_is_off_does_not_count_as_growth() -> None:
    looks = [replace(grown(3.0 if number == 10 else 0.0), sessions=50 * number) for number in range(11)]
    assert Growth("files", [QUIET, *looks[1:]], []).mib("server.engine.ipc.main") < 1.5


def test_growth_is_told_by_process_and_for_as_many_calls_as_the_bar() -> None:
    growth = Growth("files", [QUIET, grown(1.0)], [])
    assert growth.row() == ["files", 500, "+0.0 MiB", "+1.0 MiB", "+0.0 MiB", "+4.0 MiB", "nothing", 0]
