"""Streamed replies: the text as it arises, one end, errors in their places, and nothing left behind."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from server.engine.types.events import Delta, Done, Event, Failed, LiveEvent, StageTimes, TokenLogprob, Usage
from server.engine.types.options import Priority
from server.engine.types.requests import InstructRequest, LiveInput, LiveRequest
from server.engine.types.stats import EngineStats
from server.errors import EngineFailed, Overloaded, ServeError
from tests.support.clients.live_server import LiveServer, audio_file, error_code, instruct, live_server, tone, wait_until
from tests.support.clients.time_limits import limit_requests_once

CLIP = audio_file(tone(1.0, 16_000), 16_000, "FLAC", "PCM_16")


class HeldEngine:
    """`Engine` whose answers the test delivers piece by piece, through the one request that it holds."""

    sample_rate_hz = 16_000
    max_audio_s = 30.0
    model_name = "held-model"

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Take up the beginning."""
        self.refusal: ServeError | None = None
        self.submitted: list[InstructRequest] = []
        self.aborted: list[str] = []
        self._deliver: Callable[[Event], None] | None = None

    def start(self) -> None: ...

    def transcribes(self, instruction: str) -> bool:
        raise NotImplementedError

    def check_room(self, client: str, priority: Priority) -> None: ...

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self._deliver = deliver
        self.submitted.append(request)

    def open_live(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        raise NotImplementedError

    def push(self, request_id: str, item: LiveInput) -> None:
        raise NotImplementedError

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def stats(self) -> EngineStats:
        return EngineStats(ready=True, waiting=0, running=0, slots=4, queue_limit=16)

    def drain(self, timeout_s: float) -> None: ...

    def say(self, text: str, *logprobs: TokenLogprob) -> None:
        self._tell(Delta(self._id(), text, logprobs))

    def end(self, text: str, logprobs: tuple[TokenLogprob, ...] | None = None) -> None:
        self._tell(Done(self._id(), text, "stop", Usage(20, 12, 3, 8), StageTimes(), logprobs=logprobs))

    def fail(self, error: ServeError) -> None:
        self._tell(Failed(self._id(), error))

    def _id(self) -> str:
        wait_until(lambda: bool(self.submitted))
        return self.submitted[-1].id

    def _tell(self, event: Event) -> None:
        assert self._deliver is not None
        self._deliver(event)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[HeldEngine, LiveServer]]:
    engine = HeldEngine()
    with live_server(engine, request_timeout_s=20.0) as live:
        yield engine, live


@pytest.fixture
def engine(running: tuple[HeldEngine, LiveServer]) -> HeldEngine:
    running[0].forget()
    return running[0]


@pytest.fixture
def server(running: tuple[HeldEngine, LiveServer], engine: HeldEngine) -> LiveServer:  # noqa: ARG001
    return running[1]


@contextlib.contextmanager
def streaming(server: LiveServer, **fields: str) -> Iterator[httpx.Response]:
    """Return the reply to a streamed request, not read yet."""
    form = {"instruction": "Transcribe.", "stream": "true", **fields}
    with server.client.stream("POST", "/v1/instruct", files={"audio": ("clip", CLIP)}, data=form) as response:
        yield response


def in_background(*actions: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=lambda: [action() for action in actions])
    thread.start()
    return thread


def event_of(line: str) -> dict[str, Any]:
    assert line.startswith("data: ")
    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return event


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Return all events of a reply, after checking the format: a line of data, an empty line."""
    text = response.read().decode()
    assert text.endswith("\n\n")
    return [event_of(block) for block in text.removesuffix("\n\n").split("\n\n") if not block.startswith(":")]


def in_flight(server: LiveServer) -> bool:
    return "thinbridge_instruct_in_flight 0.0" not in server.client.get("/metrics").text


def test_text_comes_as_it_arises(server: LiveServer, engine: HeldEngine) -> None:
    """Each piece is read before the engine makes the next."""
    in_background(lambda: engine.say("Où "))
    with streaming(server) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
        lines = response.iter_lines()
        assert event_of(next(lines)) == {"type": "instruct.text.delta", "delta": "Où "}
        assert next(lines) == ""
        engine.say("est\n\nla data: clé 🔑")
        assert event_of(next(lines)) == {"type": "instruct.text.delta", "delta": "est\n\nla data: clé 🔑"}
        assert next(lines) == ""
        engine.end("Où est\n\nla data: clé 🔑")
        done = event_of(next(lines))
        assert list(lines) == [""]
    assert (done["type"], done["text"], done["finish_reason"]) == ("instruct.text.done", "Où est\n\nla data: clé 🔑", "stop")
    assert done["usage"]["cached_tokens"] == 8
    assert done["id"] == engine.submitted[0].id
    assert engine.aborted == []
    assert not in_flight(server)


def test_the_end_is_the_whole_of_the_reply_without_a_stream(server: LiveServer, engine: HeldEngine) -> None:
    in_background(lambda: engine.end("text"))
    with streaming(server) as response:
        (done,) = events_of(response)
    engine.submitted.clear()
    in_background(lambda: engine.end("text"))
    reply = instruct(server, CLIP, stream="false").json()
    assert set(done) == {*reply, "type"}
    assert all(done[name] == reply[name] for name in reply if name not in ("id", "times_ms"))


def test_logprobs_come_with_the_text_and_with_the_end(server: LiveServer, engine: HeldEngine) -> None:
    snow = [TokenLogprob(b"\xe2\x98", -0.25, ((b"\xe2\x98", -0.25), (b" a", -3.0))), TokenLogprob(b"\x83", -0.5)]
    in_background(lambda: engine.say("☃", *snow), lambda: engine.end("☃", tuple(snow)))
    with streaming(server, logprobs="2") as response:
        *deltas, done = events_of(response)
    assert "".join(event["delta"] for event in deltas) == done["text"] == "☃"
    assert [token for event in deltas for token in event["logprobs"]] == done["logprobs"]
    first, second = done["logprobs"]
    assert (first["bytes"], first["logprob"], second["bytes"], second["top"]) == ([0xE2, 0x98], -0.25, [0x83], [])
    assert first["top"][1] == {"token": " a", "bytes": [0x20, 0x61], "logprob": -3.0}
    assert engine.submitted[0].task.sampling.logprobs == 2


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_refusal_is_a_status(server: LiveServer, engine: HeldEngine, stream: str) -> None:
    engine.refusal = Overloaded("Busy.", retry_after_s=3)
    response = instruct(server, CLIP, stream=stream)
    assert (response.status_code, error_code(response), response.headers["retry-after"]) == (429, "overloaded", "3")


def test_a_failure_before_any_text_is_a_status(server: LiveServer, engine: HeldEngine) -> None:
    in_background(lambda: engine.fail(EngineFailed("The engine failed.")))
    response = instruct(server, CLIP, stream="true")
    assert (response.status_code, error_code(response)) == (500, "engine_failed")
    assert not in_flight(server)


def test_a_bad_form_is_a_status(server: LiveServer, engine: HeldEngine) -> None:
    response = instruct(server, b"not audio", stream="true")
    assert (response.status_code, error_code(response)) == (415, "undecodable_audio")
    assert engine.submitted == []


def test_a_failure_after_some_text_is_an_event(server: LiveServer, engine: HeldEngine) -> None:
    in_background(lambda: engine.say("Half"), lambda: engine.fail(EngineFailed("The engine failed.")))
    with streaming(server) as response:
        delta, error = events_of(response)
    assert response.status_code == 200
    assert delta["delta"] == "Half"
    shape = {"message": "The engine failed.", "type": "server_error", "param": None, "code": "engine_failed"}
    assert error == {"type": "error", "error": shape, "request_id": response.headers["x-request-id"]}
    assert 'thinbridge_streams_total{model="held-model",outcome="error"} 1.0' in server.client.get("/metrics").text
    assert engine.aborted == []


def test_the_time_limit_ends_a_stream_with_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, said = HeldEngine(), threading.Event()
    limit_requests_once(said.is_set, monkeypatch)
    with live_server(engine, request_timeout_s=0.3) as server:
        in_background(lambda: engine.say("Half"), said.set)
        with streaming(server) as response:
            assert [event["type"] for event in events_of(response)] == ["instruct.text.delta", "error"]
        assert engine.aborted == [engine.submitted[0].id]


def test_the_time_limit_before_any_text_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = HeldEngine()
    limit_requests_once(lambda: engine.submitted, monkeypatch)
    with live_server(engine, request_timeout_s=0.3) as server:
        response = instruct(server, CLIP, stream="true")
        assert (response.status_code, error_code(response)) == (504, "request_timed_out")
        assert engine.aborted == [engine.submitted[0].id]


def test_silence_is_broken_by_a_comment() -> None:
    engine = HeldEngine()
    with live_server(engine, stream_heartbeat_s=0.05) as server:
        in_background(lambda: engine.say("a"))
        with streaming(server) as response:
            lines = response.iter_lines()
            assert event_of(next(lines))["delta"] == "a"
            comments = [next(lines) for _ in range(4)]
            engine.end("a")
            rest = [line for line in lines if line and not line.startswith(":")]
        assert [line[:1] for line in comments] == ["", ":", "", ":"]
        assert [event_of(line)["type"] for line in rest] == ["instruct.text.done"]


def endings(server: LiveServer) -> tuple[float, float]:
    """Return how many streams were broken off, and how many clients left without a reply."""
    lines = server.client.get("/metrics").text.splitlines()

    def count(sample: str) -> float:
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"thinbridge_{sample}"))

    broken_off = count('streams_total{model="held-model",outcome="broken_off"}')
    return broken_off, count('http_requests_total{route="/v1/instruct",status="499"}')


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_leaves_ends_the_work(server: LiveServer, engine: HeldEngine, reset: bool, started: bool) -> None:
    request = server.client.build_request(
        "POST", "/v1/instruct", files={"audio": ("clip", CLIP)}, data={"instruction": "x", "stream": "true"}
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    before = endings(server)
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(f"POST /v1/instruct HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        wait_until(lambda: bool(engine.submitted))
        if started:
            engine.say("Half")
            assert peer.recv(65_536).startswith(b"HTTP/1.1 200")
        assert engine.aborted == []
        if reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: engine.aborted == [engine.submitted[0].id])
    wait_until(lambda: not in_flight(server))
    broken_off, left = (after - before for after, before in zip(endings(server), before, strict=True))
    assert (broken_off, left) == (started, not started)


def test_what_a_slow_reader_misses_comes_together_and_the_engine_never_waits(server: LiveServer, engine: HeldEngine) -> None:
    """The answer is far more than the sockets hold: the engine is done before the client reads any."""
    piece = "x" * 10_000
    in_background(lambda: engine.say(piece))
    with streaming(server) as response:
        for _ in range(2000):
            engine.say(piece)
        engine.end(piece * 2001)
        *deltas, done = events_of(response)
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert len(deltas) < 1500
    assert engine.aborted == []


def test_a_client_that_does_not_read_is_given_up_at_the_time_limit() -> None:
    engine = HeldEngine()
    with live_server(engine, request_timeout_s=1.0) as server:
        in_background(*[lambda: engine.say("x" * 1_000_000)] * 30)
        with streaming(server):
            wait_until(lambda: engine.aborted == [engine.submitted[0].id])
        wait_until(lambda: not in_flight(server))


def test_streams_and_the_time_between_pieces_are_counted() -> None:
    engine = HeldEngine()
    with live_server(engine) as server:
        in_background(*[lambda: engine.say("a")] * 3, lambda: engine.end("aaa"))
        with streaming(server) as response:
            response.read()
        metrics = server.client.get("/metrics").text
        assert 'thinbridge_inter_token_latency_seconds_count{model="held-model"} 2.0' in metrics
        assert 'thinbridge_streams_total{model="held-model",outcome="done"} 1.0' in metrics
        assert 'thinbridge_time_to_first_token_seconds_count{model="held-model"} 1.0' in metrics
        assert 'thinbridge_request_success_total{finished_reason="stop",model="held-model"} 1.0' in metrics
