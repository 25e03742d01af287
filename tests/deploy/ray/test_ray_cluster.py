"""Engine replicas on a real Ray cluster on this machine, over a tiny bundle. Needs the `ray` extra; `make test-ray`."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.ray.engine import RayEngine
from server.engine.types.events import Done, Ended
from server.engine.types.options import SamplingOptions
from server.engine.types.protocol import Engine
from server.engine.types.requests import InstructRequest, LiveRequest, SpeechTask
from server.errors import EngineFailed
from tests.support.clients.engine_call import Call, request
from tests.support.clients.live_client import LiveClient
from tests.support.clients.live_server import audio_file, instruct, live_server, tone
from tests.support.clients.ray_fleet import (
    APPLICATION,
    CHANGE_TIMEOUT_S,
    RATE_HZ,
    SETTINGS,
    Clients,
    EngineCluster,
    replica_processes,
    run_session,
    session_audio,
    wait_for_members,
)

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster(bundle: Path) -> Iterator[EngineCluster]:
    pytest.importorskip("ray")
    from deploy.ray import cluster

    cluster.join_cluster(None, cpus=2)
    yield EngineCluster(cluster, bundle, cpus=0.5)
    cluster.leave_cluster(stop=True)


@pytest.fixture(scope="module")
def fleet(cluster: EngineCluster) -> Iterator[RayEngine]:
    yield from cluster.run_fleet()


@pytest.fixture
def two(fleet: RayEngine, cluster: EngineCluster) -> RayEngine:
    return cluster.restore_two(fleet)


def test_two_replicas_give_the_texts_of_one_process(two: RayEngine, single: Engine) -> None:
    requests = [request(f"r{seed}", seed) for seed in range(12)]
    expected = [Call(single, each).done().text for each in requests]
    calls = [Call(two, each) for each in requests]
    assert [call.done().text for call in calls] == expected
    deadline_s = time.monotonic() + CHANGE_TIMEOUT_S
    while not all(stats.counters.generated_tokens for stats in two.stats().members.values()):
        assert time.monotonic() < deadline_s, "one replica did all the work"
        time.sleep(0.1)


def test_sessions_stay_with_their_replicas(two: RayEngine, single: Engine) -> None:
    expected = [run_session(single, f"own {seed}", seed) for seed in range(4)]
    texts: dict[int, list[str]] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: texts.update({seed: run_session(two, f"s{seed}", seed)})) for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[seed] for seed in range(4)] == expected
    assert all(expected)


def test_the_edge_answers_over_http(two: RayEngine, cluster: EngineCluster) -> None:
    with live_server(cluster.open_edge()) as server:
        deadline_s = time.monotonic() + CHANGE_TIMEOUT_S
        while server.client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        samples = tone(1.0, RATE_HZ)
        reply = instruct(server, audio_file(samples, RATE_HZ, "WAV", "FLOAT"), max_tokens="20")
        assert reply.status_code == 200, reply.text
        same = InstructRequest("same", samples, SpeechTask("Transcribe.", SamplingOptions(max_tokens=20)))
        assert reply.json()["text"] == Call(two, same).done().text
        assert "thinbridge" in server.client.get("/metrics").text


def test_an_aborted_request_frees_its_place(two: RayEngine) -> None:
    call = Call(two, request("long", max_tokens=300))
    two.abort("long")
    assert Call(two, request("next")).done().text
    assert not any(isinstance(event, Done) for event in call.events)


def test_a_killed_replica_costs_its_own_requests_only(two: RayEngine) -> None:
    clients = Clients(two, 4)
    clients.wait_for(8)
    os.kill(replica_processes()[0], signal.SIGKILL)
    clients.wait_for(20)
    wait_for_members(two, 2)
    clients.wait_for(4)
    outcomes = clients.stop()
    failures = [outcome for outcome in outcomes if not isinstance(outcome, Done)]
    assert all(isinstance(failure, EngineFailed) for failure in failures), failures
    assert len(failures) <= 4
    assert isinstance(outcomes[-1], Done)


def test_scale_in_loses_no_answer(two: RayEngine, cluster: EngineCluster) -> None:
    sessions = [LiveClient(two, LiveRequest(f"open {number}", SpeechTask("Transcribe."))) for number in range(4)]
    for number, session in enumerate(sessions):
        session.say(session_audio(number)[:8_000])
    clients = Clients(two, 4)
    clients.wait_for(4)
    resize = threading.Thread(target=cluster.deploy, args=(1,))
    resize.start()
    clients.wait_for(8)
    for number, session in enumerate(sessions):
        session.say(session_audio(number)[8_000:])
        assert isinstance(session.end(), Ended)
    resize.join(CHANGE_TIMEOUT_S)
    wait_for_members(two, 1)
    clients.wait_for(4)
    assert [outcome for outcome in clients.stop() if not isinstance(outcome, Done)] == []
    assert all(session.texts() for session in sessions)


def test_a_rolling_update_loses_no_answer(two: RayEngine, cluster: EngineCluster) -> None:
    clients = Clients(two, 4)
    clients.wait_for(4)
    before = set(replica_processes())
    cluster.deploy(2, SETTINGS.model_copy(update={"slots": 2}))
    clients.wait_for(4)
    assert [outcome for outcome in clients.stop() if not isinstance(outcome, Done)] == []
    assert not before & set(replica_processes())
    assert "RUNNING" in cluster.module.describe_application(APPLICATION)
