"""Long audio that goes wrong: each fault is its own error, at once, and nothing is left behind."""

import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from server.engine.types.events import Failed
from server.engine.types.requests import LiveInput
from server.errors import EngineFailed, PromptTooLong
from tests.support.clients.live_server import (
    LiveServer,
    audio_file,
    error_code,
    instruct,
    live_server,
    scripted_engine_server,
    wait_until,
)
from tests.support.clients.time_limits import limit_requests_once
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.inputs.recorded import Ledger, events_of, recording, streaming, transcript

MINUTE = recording(60)
CUT_OFF = MINUTE[: len(MINUTE) * 9 // 10]


@pytest.fixture
def server(server: LiveServer, engine: FakeEngine) -> Iterator[LiveServer]:
    yield server
    assert_nothing_is_left(server, engine)


def assert_nothing_is_left(server: LiveServer, engine: FakeEngine) -> None:
    wait_until(lambda: "thinbridge_instruct_in_flight 0.0" in server.client.get("/metrics").text)
    assert engine.sessions == {}
    assert "thinbridge_decode_worker_restarts_total 0.0" in server.client.get("/metrics").text
    assert instruct(server, recording(1)).status_code == 200


def last_event(server: LiveServer, audio: bytes, **fields: str) -> dict[str, Any]:
    """Return the last event of a stream that has begun."""
    with streaming(server, audio, **fields) as response:
        assert response.status_code == 200
        *_, last = events_of(response)
    return last


def in_background(server: LiveServer, audio: bytes, **fields: str) -> tuple[threading.Thread, list[httpx.Response]]:
    replies: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: replies.append(instruct(server, audio, **fields)))
    thread.start()
    return thread, replies


def test_a_file_that_turns_out_to_be_no_sound(server: LiveServer, engine: FakeEngine) -> None:
    samples = np.zeros(16_000 * 60, np.float32)
    samples[16_000 * 50] = np.nan
    broken = audio_file(samples, 16_000, "WAV", "FLOAT")
    response = instruct(server, broken)
    assert (response.status_code, error_code(response)) == (400, "invalid_audio")
    assert len(engine.aborted) == 1
    assert last_event(server, broken)["error"]["code"] == "invalid_audio"
    assert len(engine.aborted) == 2


def test_a_file_that_turns_out_to_be_cut_off(server: LiveServer) -> None:
    reply = instruct(server, CUT_OFF).json()
    assert 53 < reply["audio_s"] < 55
    assert any("of 60.000 s" in warning.lower() for warning in reply["warnings"])
    assert last_event(server, CUT_OFF)["warnings"] == reply["warnings"]
    assert "warnings" not in instruct(server, MINUTE).json()


def test_a_problem_with_one_utterance_fails_the_whole(server: LiveServer, engine: FakeEngine) -> None:
    engine.problems[40] = PromptTooLong("Too long.", param="instruction")
    response = instruct(server, MINUTE)
    assert (response.status_code, error_code(response)) == (400, "prompt_too_long")
    assert last_event(server, MINUTE)["error"]["message"] == "Too long."
    assert [session.request.id for session in engine.past_sessions] == engine.aborted


def test_an_engine_that_breaks(server: LiveServer, engine: FakeEngine) -> None:
    engine.listens_until_s = 5.0
    thread, replies = in_background(server, MINUTE)
    wait_until(lambda: any(session.audio_s > 5 for session in engine.sessions.values()))
    (session,) = engine.sessions.values()
    engine.end_session(session.request.id)
    session.deliver(Failed(session.request.id, EngineFailed("It broke.")))
    thread.join(20)
    assert [(reply.status_code, error_code(reply)) for reply in replies] == [(500, "engine_failed")]
    assert engine.aborted == []


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_session_that_is_refused(server: LiveServer, engine: FakeEngine, stream: str) -> None:
    engine.live_limit = 0
    response = instruct(server, MINUTE, stream=stream)
    assert (response.status_code, error_code(response)) == (429, "overloaded")
    engine.live_refusal = PromptTooLong("Too long.", param="instruction")
    assert error_code(instruct(server, MINUTE, stream=stream)) == "prompt_too_long"


def test_silence_is_no_speech() -> None:
    with scripted_engine_server() as (engine, server):
        engine.is_silent = True
        reply = instruct(server, MINUTE).json()
        assert (reply["text"], reply["finish_reason"], reply["audio_s"]) == ("", "no_speech", 60.0)
        assert reply["usage"]["total_tokens"] == 0
        assert last_event(server, MINUTE)["finish_reason"] == "no_speech"


@pytest.mark.parametrize(("container", "subtype"), [("WAV", None), ("FLAC", None), ("OGG", "OPUS"), ("MP3", None)])
def test_what_is_longer_than_the_cap_is_never_begun(container: str, subtype: str | None) -> None:
    data = audio_file(np.zeros(8_000 * 41, np.float32), 8_000, container, subtype)
    with scripted_engine_server(max_audio_s=40.0) as (engine, server):
        response = instruct(server, data)
        assert (response.status_code, error_code(response)) == (413, "audio_too_long")
        assert "40 s" in response.json()["error"]["message"]
        assert engine.past_sessions == []
        assert instruct(server, recording(40)).status_code == 200


def test_a_cap_below_what_the_model_takes() -> None:
    with scripted_engine_server(max_audio_s=2.0) as (_, server):
        assert error_code(instruct(server, recording(2.1))) == "audio_too_long"
        assert instruct(server, recording(2)).status_code == 200


def test_decoding_waits_for_the_engine(server: LiveServer, engine: FakeEngine) -> None:
    engine.listens = False
    with Ledger(engine).kept() as ledger:
        thread, replies = in_background(server, MINUTE, chunking="voice")
        wait_until(lambda: any(session.audio_s >= 9 for session in engine.sessions.values()))
        time.sleep(0.1)
        (session,) = engine.sessions.values()
        assert session.audio_s <= 10
        # One block more waits to be pushed.
        assert ledger.decoded_s <= session.audio_s + 1
        engine.go_on_listening()
        thread.join(20)
    assert replies[0].json()["text"] == transcript(60)


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_leaves_midway(server: LiveServer, engine: FakeEngine, stream: str, reset: bool) -> None:
    engine.listens_until_s = 5.0
    form = {"instruction": "Transcribe.", "stream": stream}
    request = server.client.build_request("POST", "/v1/instruct", files={"audio": ("clip", MINUTE)}, data=form)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(f"POST /v1/instruct HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        wait_until(lambda: any(session.audio_s > 5 for session in engine.sessions.values()))
        assert engine.aborted == []
        if reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: engine.aborted == [session.request.id for session in engine.past_sessions] != [])


def test_the_time_limit_counts_from_the_last_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty steps of 100 ms take more than the limit, but no single step does."""
    engine = FakeEngine()
    slow = SlowEngine(0.1)
    with live_server(slow, request_timeout_s=3.0) as server:
        wait_until(lambda: slow.stats().ready)
        assert instruct(server, recording(40)).json()["text"] == transcript(40)
    engine.listens_until_s = 5.0
    limit_requests_once(lambda: any(session.audio_s > 5 for session in engine.sessions.values()), monkeypatch)
    with live_server(engine, request_timeout_s=0.5) as server:
        wait_until(lambda: engine.stats().ready)
        response = instruct(server, MINUTE)
        assert (response.status_code, error_code(response)) == (504, "request_timed_out")
        assert last_event(server, MINUTE)["error"]["code"] == "request_timed_out"
        assert_nothing_is_left(server, engine)


def test_a_deadline_is_one_whatever_is_got_on_with() -> None:
    """Sixty steps of 50 ms take longer than the first deadline, whose first steps are taken before it."""
    slow = SlowEngine(0.05)
    with live_server(slow) as server:
        wait_until(lambda: slow.stats().ready)
        response = instruct(server, MINUTE, deadline_ms="2000")
        assert (response.status_code, error_code(response)) == (504, "request_timed_out")
        assert "deadline" in response.json()["error"]["message"]
        assert len(slow.aborted) == 1
        assert instruct(server, MINUTE, deadline_ms="60000").status_code == 200


def test_no_more_recordings_than_decoders() -> None:
    with scripted_engine_server(decode_streams=0) as (engine, server):
        response = instruct(server, MINUTE)
        assert (response.status_code, error_code(response)) == (429, "overloaded")
        assert "retry-after" in response.headers
        assert_nothing_is_left(server, engine)


def test_recordings_that_wait_hold_up_no_short_clip() -> None:
    """There is a single decode worker, and four recordings wait for the engine."""
    with scripted_engine_server(decode_workers=1) as (engine, server):
        engine.listens_until_s = 5.0
        waiting = [in_background(server, MINUTE) for _ in range(4)]
        wait_until(lambda: len(engine.sessions) == 4 and all(session.audio_s > 5 for session in engine.sessions.values()))
        for _ in range(5):
            assert instruct(server, recording(1)).json()["text"] == "hello world"
        engine.go_on_listening()
        for thread, replies in waiting:
            thread.join(30)
            assert replies[0].json()["text"] == transcript(60)


def test_a_server_that_stops_gives_no_half_answer() -> None:
    with scripted_engine_server() as (engine, server):
        engine.listens_until_s = 5.0
        thread, replies = in_background(server, MINUTE)
        wait_until(lambda: any(session.audio_s > 5 for session in engine.sessions.values()))
        engine.end_all_audio()
        thread.join(20)
    assert [(reply.status_code, error_code(reply)) for reply in replies] == [(503, "not_ready")]


class SlowEngine(FakeEngine):
    """An engine that takes `pause_s` for each piece of audio."""

    def __init__(self, pause_s: float) -> None:
        super().__init__()
        self._pause_s = pause_s
        self._due_s = 0.0
        self._late: deque[tuple[str, LiveInput]] = deque()
        self._in_order = threading.Lock()

    def push(self, request_id: str, item: LiveInput) -> None:
        now_s = time.monotonic()
        self._due_s = max(self._due_s, now_s) + self._pause_s
        self._late.append((request_id, item))
        threading.Timer(self._due_s - now_s, self._push_next).start()

    def _push_next(self) -> None:
        """Push the oldest piece: timers that are due together run in any order."""
        with self._in_order:
            super().push(*self._late.popleft())
