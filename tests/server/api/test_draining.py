"""A server that stops refuses new work plainly, finishes the old, and leaves no client without a last word."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from server.api import lifecycle
from server.api.app import create_app
from server.api.lifecycle import listen, web_server
from server.settings import Settings
from tests.support.clients.live_server import LiveServer, audio_file, error_code, fixed_source, instruct, tone, wait_until
from tests.support.clients.stream_client import streaming
from tests.support.fakes.fake_engine import FakeEngine

CLIP = audio_file(tone(0.5, 16_000), 16_000, "FLAC", "PCM_16")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@contextlib.contextmanager
def stopping_server(engine: FakeEngine, drain_timeout_s: float) -> Iterator[tuple[LiveServer, uvicorn.Server]]:
    """Serve until the block ends, or until the signal that the test gives."""
    settings = Settings(decode_workers=1, port=0, drain_timeout_s=drain_timeout_s)
    server = web_server(create_app([fixed_source(engine)], settings), settings)
    listener = listen(settings)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0, trust_env=False) as client:
        wait_until(lambda: server.started and client.get("/ready").status_code == 200)
        try:
            yield LiveServer(str(client.base_url), port, client), server
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()
    assert engine.drained


def in_background(server: LiveServer) -> tuple[threading.Thread, list[httpx.Response]]:
    """Send one request; its response is in the list once the thread has ended."""
    replies: list[httpx.Response] = []

    def send() -> None:
        data = {"instruction": "Transcribe."}
        with httpx.Client(base_url=server.url, timeout=30.0, trust_env=False) as client:
            replies.append(client.post("/v1/instruct", files={"audio": ("clip", CLIP)}, data=data))

    thread = threading.Thread(target=send)
    thread.start()
    return thread, replies


def test_while_work_is_finished_new_work_is_refused_and_probes_are_answered(engine: FakeEngine) -> None:
    engine.gate.clear()
    with stopping_server(engine, 20.0) as (server, web):
        old, replies = in_background(server)
        wait_until(lambda: engine.pending == 1)
        web.should_exit = True
        wait_until(lambda: server.client.get("/ready").status_code == 503)
        refused = instruct(server, CLIP)
        assert (refused.status_code, error_code(refused)) == (503, "not_ready")
        assert "retry-after" in refused.headers
        with httpx.Client(base_url=server.url, trust_env=False) as late:
            assert late.get("/health").status_code == 200
            assert late.post("/v1/instruct", content=b"").status_code == 503
        engine.gate.set()
        old.join()
    assert replies[0].status_code == 200


def test_work_that_takes_too_long_is_told(engine: FakeEngine) -> None:
    """Before, a stream ended without a last event, and a whole reply was a 500 in plain text."""
    engine.text, engine.pause_s = "many words that come one after another " * 50, 0.1
    form: Any = {"files": {"audio": ("clip", CLIP)}, "data": {"instruction": "Transcribe.", "stream": "true"}}
    with stopping_server(engine, 0.2) as (server, web):
        other, whole = in_background(server)
        with server.client.stream("POST", "/v1/instruct", **form) as streamed:
            lines = streamed.iter_lines()
            assert "delta" in next(lines)
            wait_until(lambda: engine.pending == 2)
            web.should_exit = True
            last = json.loads([line for line in lines if line][-1].removeprefix("data: "))
        other.join()
    assert (whole[0].status_code, error_code(whole[0])) == (503, "not_ready")
    assert (streamed.status_code, last["type"], last["error"]["code"]) == (200, "error", "not_ready")


def test_an_upload_that_does_not_end_is_told(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "FAREWELL_S", 0.1)
    form_type = b"Content-Type: multipart/form-data; boundary=b\r\n"
    head = b"POST /v1/instruct HTTP/1.1\r\nHost: localhost\r\n" + form_type + b"Content-Length: 99\r\n\r\n"
    with stopping_server(engine, 0.1) as (server, web), socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
        peer.sendall(head)
        wait_until(lambda: "thinbridge_instruct_in_flight 1.0" in server.client.get("/metrics").text)
        web.should_exit = True
        with peer.makefile("rb") as received:
            reply = received.read()
    assert reply.startswith(b"HTTP/1.1 503 ")
    assert b'"not_ready"' in reply


def test_a_session_is_told_and_closed_for_a_restart(engine: FakeEngine) -> None:
    with stopping_server(engine, 5.0) as (server, web), streaming(server) as client:
        client.start()
        web.should_exit = True
        assert client.fatal() == ("not_ready", 1012)
