"""Clients of the server get an error when the engine's process is lost, and an answer from the next one."""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.engine.ipc.client import ProcessEngine
from server.engine.types.events import Done, Event
from server.errors import EngineFailed, NotReady
from tests.support.clients.engine_call import TIMEOUT_S, Call, occupied, request, wait_until
from tests.support.clients.live_server import audio_file, error_code, instruct, live_server, tone
from tests.support.fakes import engine_children
from tests.support.fakes.engine_children import FileGate

CLIP = audio_file(tone(0.5, 16_000), 16_000, "FLAC", "PCM_16")
STALL_TIMEOUT_S = 8.0


@pytest.fixture
def engine(gate: FileGate) -> ProcessEngine:
    factory = f"{engine_children.__name__}:{engine_children.scripted.__name__}"
    return ProcessEngine(factory, (str(gate.path),), 16_000, 30.0, transcribes=bool, stall_timeout_s=STALL_TIMEOUT_S)


def kill_child(engine: ProcessEngine) -> None:
    """Kill the child and return when its loss has been noticed."""
    before, child = engine.stats().counters.restarts, engine.process_id
    assert child is not None
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: engine.stats().counters.restarts > before)


def test_requests_in_the_child_get_an_error_reply_and_later_ones_an_answer(engine: ProcessEngine, gate: FileGate) -> None:
    with live_server(engine) as server, ThreadPoolExecutor(4) as pool:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        gate.clear()
        replies = [pool.submit(instruct, server, CLIP) for _ in range(4)]
        wait_until(lambda: occupied(engine) == 4)
        kill_child(engine)
        for reply in replies:
            response = reply.result(TIMEOUT_S)
            assert (response.status_code, error_code(response)) == (500, "engine_failed")
        gate.set()
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        assert instruct(server, CLIP).json()["text"] == "hello world"
        assert 'thinbridge_engine_restarts_total{model="model"} 1.0' in server.client.get("/metrics").text


def test_the_server_is_not_ready_while_its_engine_is_silent(engine: ProcessEngine) -> None:
    with live_server(engine) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        child = engine.process_id
        assert child is not None
        # Not for long enough to be replaced.
        os.kill(child, signal.SIGSTOP)
        wait_until(lambda: server.client.get("/ready").status_code == 503)
        response = instruct(server, CLIP)
        assert (response.status_code, error_code(response)) == (503, "not_ready")
        assert "retry-after" in response.headers
        os.kill(child, signal.SIGCONT)
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        assert instruct(server, CLIP).status_code == 200
        assert engine.process_id == child


def test_every_request_ends_once_however_often_the_child_is_killed(engine: ProcessEngine) -> None:
    engine.start()
    finished, answered = threading.Event(), threading.Event()

    def notice_answer(event: Event) -> None:
        if isinstance(event, Done):
            answered.set()

    def submit_until_finished(seed: int) -> list[Call]:
        draw = random.Random(seed)
        calls: list[Call] = []
        while not finished.is_set():
            call = Call(engine, request(f"r{seed}-{len(calls)}", seed), notice_answer)
            if draw.random() < 0.2:
                engine.abort(call.request.id)
            else:
                calls.append(call)
            time.sleep(0.002)
        return calls

    with ThreadPoolExecutor(3) as pool:
        submitting = [pool.submit(submit_until_finished, seed) for seed in range(3)]
        for _ in range(3):
            kill_child(engine)
            wait_until(lambda: engine.stats().ready)
            # Each new child serves before it is killed in its turn.
            answered.clear()
            assert answered.wait(TIMEOUT_S)
        finished.set()
        outcomes = [call.outcome() for calls in submitting for call in calls.result(TIMEOUT_S)]
    engine.drain(TIMEOUT_S)
    assert {type(outcome) for outcome in outcomes} <= {Done, EngineFailed, NotReady}
    assert occupied(engine) == 0
