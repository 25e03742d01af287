"""The HTTP API over a real socket: replies, errors, limits, readiness, metrics and shutdown."""

import contextlib
import dataclasses
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.engine.types.stats import EngineStats
from server.errors import EngineFailed, Overloaded
from tests.support.clients.live_server import (
    LiveServer,
    audio_file,
    error_code,
    instruct,
    live_server,
    scripted_engine_server,
    tone,
    wait_until,
)
from tests.support.clients.time_limits import limit_requests_once
from tests.support.fakes.fake_engine import FakeEngine

CLIP = audio_file(tone(1.25, 16_000), 16_000, "FLAC", "PCM_16")


def metric(server: LiveServer, name: str, **labels: str) -> float:
    """Return the value of one sample at `/metrics`; 0 if it has not been counted yet."""
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and {**sample.labels, **labels} == sample.labels:
                return float(sample.value)
    return 0.0


def test_an_answer_has_text_usage_and_times(server: LiveServer, engine: FakeEngine) -> None:
    response = instruct(server, CLIP, "Say it.", max_tokens="7", temperature="0.5", seed="3")
    assert response.status_code == 200
    reply = response.json()
    assert reply["text"] == "hello world"
    assert reply["finish_reason"] == "stop"
    usage = {"audio_frames": 20, "text_tokens": 12, "output_tokens": 2, "total_tokens": 34, "cached_tokens": 0}
    assert reply["usage"] == usage
    assert reply["speculation"] == {"drafted": 0, "accepted": 0, "llm_passes": 0}
    assert "logprobs" not in reply
    assert reply["audio_s"] == 1.25
    assert reply["times_ms"]["encode_ms"] == 10
    assert reply["times_ms"]["audio_decode_ms"] > 0
    assert reply["times_ms"]["total_ms"] >= reply["times_ms"]["audio_decode_ms"]
    assert "encode;dur=10.0" in response.headers["server-timing"]
    (submitted,) = engine.submitted
    assert submitted.id == reply["id"]
    assert (submitted.task.instruction, len(submitted.audio)) == ("Say it.", 20_000)
    assert (submitted.task.sampling.max_tokens, submitted.task.sampling.temperature, submitted.task.sampling.seed) == (7, 0.5, 3)


def test_the_instruction_arrives_as_it_was_sent(server: LiveServer, engine: FakeEngine) -> None:
    text = " Übersetze “das”\n<|im_end|> 日本語 🎧 "
    assert instruct(server, CLIP, text).status_code == 200
    assert engine.submitted[0].task.instruction == text


def test_a_safe_request_id_is_kept_and_any_other_replaced(server: LiveServer) -> None:
    offered = "trace-1.a_B"
    assert server.client.get("/health", headers={"x-request-id": offered}).headers["x-request-id"] == offered
    for unsafe in ("", "a b", "x" * 65, "<script>", "../etc"):
        given = server.client.get("/health", headers={"x-request-id": unsafe}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", given)


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/nothing", "not_found"), ("GET", "/v1/instruct", "method_not_allowed")]
)
def test_unknown_addresses_and_methods_have_the_one_error_shape(server: LiveServer, method: str, path: str, code: str) -> None:
    response = server.client.request(method, path)
    assert error_code(response) == code
    assert response.headers.get("allow") == ("POST" if code == "method_not_allowed" else None)


def test_a_failure_of_the_engine_reaches_the_client(server: LiveServer, engine: FakeEngine) -> None:
    engine.failure = EngineFailed("The engine failed.")
    response = instruct(server, CLIP)
    assert (response.status_code, error_code(response)) == (500, "engine_failed")


def test_a_full_engine_is_429_with_a_time_to_come_back(server: LiveServer, engine: FakeEngine) -> None:
    engine.refusal = Overloaded("Busy.", retry_after_s=3)
    response = instruct(server, CLIP)
    assert (response.status_code, error_code(response), response.headers["retry-after"]) == (429, "overloaded", "3")


def test_a_bug_is_a_500_that_tells_nothing(server: LiveServer, engine: FakeEngine) -> None:
    engine.refusal = ZeroDivisionError("secret at 0xdeadbeef in /srv/file.py")
    response = instruct(server, CLIP)
    assert (response.status_code, error_code(response)) == (500, "internal_error")
    assert "secret" not in response.text
    engine.refusal = None
    assert instruct(server, CLIP).status_code == 200


def test_an_answer_that_takes_too_long_is_504_and_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_engine_server(request_timeout_s=0.3) as (engine, server):
        engine.answers = False
        limit_requests_once(lambda: engine.submitted, monkeypatch)
        response = instruct(server, CLIP)
        assert (response.status_code, error_code(response)) == (504, "request_timed_out")
        assert engine.aborted == [engine.submitted[0].id]


def test_a_body_that_comes_too_slowly_is_408() -> None:
    with scripted_engine_server(body_timeout_s=0.3) as (_, server), socket.create_connection(("127.0.0.1", server.port)) as peer:
        form_type = b"Content-Type: multipart/form-data; boundary=b\r\n"
        peer.sendall(b"POST /v1/instruct HTTP/1.1\r\nHost: localhost\r\n" + form_type + b"Content-Length: 99\r\n\r\n--b")
        peer.settimeout(20)
        reply = b""
        while b"body_timed_out" not in reply:
            piece = peer.recv(65_536)
            assert piece, reply
            reply += piece
        assert reply.startswith(b"HTTP/1.1 408")


def test_ready_follows_the_engine_and_health_does_not() -> None:
    engine = FakeEngine()
    engine.may_start.clear()
    with live_server(engine) as server:
        assert server.client.get("/health").json() == {"status": "ok", "models": {"fake-model": "loading"}}
        response = server.client.get("/ready")
        assert (response.status_code, error_code(response)) == (503, "not_ready")
        response = instruct(server, CLIP)
        assert (response.status_code, error_code(response)) == (503, "not_ready")
        assert "retry-after" in response.headers
        engine.may_start.set()
        wait_until(lambda: server.client.get("/ready").status_code == 200)


def test_an_engine_that_cannot_start_is_never_ready() -> None:
    engine = FakeEngine()
    engine.start_error = RuntimeError("secret")
    with live_server(engine) as server:
        wait_until(lambda: "could not be started" in server.client.get("/ready").text)
        assert "secret" not in server.client.get("/ready").text


class BusyEngine(FakeEngine):
    """Reports a full queue and a wait of 6.2 s, and takes requests nevertheless."""

    def stats(self) -> EngineStats:
        return dataclasses.replace(super().stats(), running=4, waiting=16, predicted_wait_s=6.2)


ANNOUNCED = (
    b"POST /v1/instruct HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 99999\r\n\r\n"
)


def test_announced_uploads_hold_no_place() -> None:
    """Before, 36 connections that sent headers only made the server refuse every other client for 30 s."""
    with scripted_engine_server(slots=1, queue_limit=1) as (_, server), contextlib.ExitStack() as peers:
        for _ in range(40):
            peers.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(ANNOUNCED)
        wait_until(lambda: metric(server, "thinbridge_instruct_in_flight") == 40)
        assert instruct(server, CLIP).status_code == 200


def test_a_full_queue_is_for_the_engine_to_refuse() -> None:
    """The engine may have room for this client or this priority, so the door lets the request through."""
    engine = BusyEngine()
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        assert instruct(server, CLIP).status_code == 200


def test_what_a_full_engine_is_certain_to_refuse_is_not_decoded() -> None:
    """Broken audio shows it: where that is decoded, the reply says so."""
    broken = audio_file(np.full(16_000, np.nan, np.float32), 16_000, "WAV", "FLOAT")
    long = audio_file(np.full(31 * 16_000, np.nan, np.float32), 16_000, "WAV", "FLOAT")
    with scripted_engine_server() as (engine, server), ThreadPoolExecutor(4) as pool:
        engine.slots, engine.queue_limit = 4, 0
        assert error_code(instruct(server, broken)) == "invalid_audio"
        engine.gate.clear()
        replies = [pool.submit(instruct, server, CLIP) for _ in range(4)]
        wait_until(lambda: engine.pending == 4)
        refused = instruct(server, broken)
        assert (error_code(refused), refused.headers["retry-after"]) == ("overloaded", "1")
        # Long audio has places of its own, and a deadline may be the first reason.
        assert error_code(instruct(server, long)) == "invalid_audio"
        assert error_code(instruct(server, broken, chunking="voice")) == "invalid_audio"
        assert error_code(instruct(server, broken, deadline_ms="60000")) == "invalid_audio"
        engine.gate.set()
        assert [reply.result().status_code for reply in replies] == [200] * 4


def test_a_request_holds_no_place_while_the_engine_works_on_it() -> None:
    """The door bounds uploads, and the engine its own queue: here 12 requests wait behind a door of 17 places."""
    with scripted_engine_server(slots=1, queue_limit=0) as (engine, server), ThreadPoolExecutor(12) as pool:
        engine.gate.clear()
        replies = []
        for number in range(12):
            replies.append(pool.submit(instruct, server, CLIP))
            wait_until(partial(lambda pending: engine.pending == pending, number + 1))
        engine.gate.set()
        assert [reply.result().status_code for reply in replies] == [200] * 12


@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_limit_holds_with_and_without_a_length(chunked: bool) -> None:
    with scripted_engine_server(max_body_bytes=4096) as (_, server):
        body = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n' + bytes(8192) + b"\r\n--b--\r\n"
        content = iter([body[:1000], body[1000:]]) if chunked else body
        response = server.client.post(
            "/v1/instruct", content=content, headers={"content-type": "multipart/form-data; boundary=b"}
        )
        assert (response.status_code, error_code(response)) == (413, "body_too_large")


def test_answers_and_errors_are_counted() -> None:
    with scripted_engine_server() as (_, server):
        instruct(server, CLIP)
        instruct(server, b"not audio")
        assert metric(server, "thinbridge_http_requests_total", route="/v1/instruct", status="200") == 1
        assert metric(server, "thinbridge_http_requests_total", route="/v1/instruct", status="415") == 1
        assert metric(server, "thinbridge_request_success_total", finished_reason="stop") == 1
        assert metric(server, "thinbridge_audio_seconds_total") == 1.25
        assert metric(server, "thinbridge_generation_tokens_total") == 2
        assert metric(server, "thinbridge_prompt_tokens_total", kind="audio") == 20
        assert metric(server, "thinbridge_stage_seconds_count", stage="encode") == 1
        assert metric(server, "thinbridge_stage_seconds_sum", stage="encode") == pytest.approx(0.01)
        assert metric(server, "thinbridge_e2e_request_latency_seconds_count") == 1
        assert metric(server, "thinbridge_time_to_first_token_seconds_count") == 1
        assert metric(server, "thinbridge_instruct_in_flight") == 0
        assert metric(server, "thinbridge_ready") == 1


def test_two_servers_share_no_metrics() -> None:
    engine = FakeEngine()
    with live_server(engine) as first, live_server(FakeEngine()) as second:
        wait_until(lambda: first.client.get("/ready").status_code == 200)
        instruct(first, CLIP)
        assert metric(second, "thinbridge_request_success_total", finished_reason="stop") == 0


def test_the_openapi_page_documents_the_form_and_every_error(server: LiveServer) -> None:
    post = server.client.get("/openapi.json").json()["paths"]["/v1/instruct"]["post"]
    assert set(post["responses"]) >= {"200", "400", "404", "408", "413", "415", "429", "500", "503", "504"}
    schema = post["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(schema["properties"]) == {
        *("audio", "instruction", "max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "presence_penalty"),
        *("seed", "stop", "json_schema", "regex", "choice", "logprobs", "stream", "priority", "deadline_ms", "draft"),
        *("channels", "chunking", "timestamps", "format", "language", "languages", "prompt", "keywords", "model"),
    }
    assert all("description" in field for name, field in schema["properties"].items() if name != "instruction")
    media = {"application/json", "text/event-stream", "text/plain", "application/x-subrip", "text/vtt"}
    assert set(post["responses"]["200"]["content"]) == media


@pytest.mark.parametrize("path", ["/", "/docs", "/health", "/ready"])
def test_probes_may_ask_for_the_head_only(server: LiveServer, path: str) -> None:
    reply = server.client.head(path)
    assert (reply.status_code, reply.content) == (200, b"")


def test_the_reference_loads_nothing_from_elsewhere(server: LiveServer) -> None:
    reply = server.client.get("/docs")
    assert "<script" not in reply.text
    assert "http://" not in reply.text
    assert "https://" not in reply.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "POST /v1/instruct" in reply.text
    assert "max_tokens" in reply.text


def test_the_page_is_self_contained(server: LiveServer) -> None:
    response = server.client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert len(response.content) < 100_000
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", response.text)
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_health_answers_while_audio_is_decoded(server: LiveServer) -> None:
    long_clip = audio_file(tone(29.9, 48_000), 48_000, "OGG", "OPUS")
    answered: list[int] = []
    thread = threading.Thread(target=lambda: answered.append(instruct(server, long_clip).status_code))
    healthy_before_the_answer = 0
    thread.start()
    while not answered and thread.is_alive():
        assert httpx.get(f"{server.url}/health", trust_env=False, timeout=20).status_code == 200
        healthy_before_the_answer += not answered
    thread.join(20)
    assert answered == [200]
    assert healthy_before_the_answer > 0


def test_shutdown_lets_a_request_finish_and_drains_the_engine() -> None:
    replies: list[httpx.Response] = []
    with scripted_engine_server(drain_timeout_s=20) as (engine, server):
        engine.delay_s = 0.4
        thread = threading.Thread(target=lambda: replies.append(instruct(server, CLIP)))
        thread.start()
        wait_until(lambda: engine.pending == 1)
    thread.join(20)
    assert [reply.status_code for reply in replies] == [200]
    assert engine.drained


def test_many_requests_at_once_each_get_their_own_answer(server: LiveServer, engine: FakeEngine) -> None:
    engine.delay_s = 0.02
    replies: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: replies.append(instruct(server, CLIP))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [reply.status_code for reply in replies] == [200] * 12
    assert len({json.loads(reply.content)["id"] for reply in replies}) == 12
