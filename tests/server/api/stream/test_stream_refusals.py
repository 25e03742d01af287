"""Refused live sessions and messages: an error in the one shape, then the right close code."""

import contextlib
import json
import socket
import struct

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from server.api.context import PLACES_BEYOND_ENGINE
from server.engine.types.events import Failed
from server.errors import EngineFailed, NotReady, Overloaded, PromptTooLong, ServeError
from tests.support.clients.live_server import LiveServer, live_server, scripted_engine_server, wait_until
from tests.support.clients.stream_client import BINARY, TEXT, close_code, frame, metric, pcm, raw_socket, streaming
from tests.support.fakes.fake_engine import FakeEngine

START = {"type": "start", "instruction": "Transcribe."}


def refusal(server: LiveServer, **options: object) -> InvalidStatus:
    """Return the HTTP reply in place of a WebSocket, after checking its shape."""
    with pytest.raises(InvalidStatus) as refused, streaming(server, **options):
        pass
    response = refused.value.response
    body = json.loads(response.body)
    assert set(body) == {"error", "request_id"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"] == body["request_id"]
    return refused.value


def code_of(refused: InvalidStatus) -> tuple[int, str]:
    return refused.response.status_code, json.loads(refused.response.body)["error"]["code"]


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1", "http://[", "file://", "http://127.0.0.1:{port}.evil.example"],
)
def test_pages_of_other_servers(server: LiveServer, origin: str) -> None:
    refused = refusal(server, additional_headers={"Origin": origin.format(port=server.port)})
    assert code_of(refused) == (403, "forbidden_origin")


def test_no_second_origin_helps(server: LiveServer) -> None:
    own = f"http://127.0.0.1:{server.port}"
    headers = [("Origin", own), ("Origin", "http://evil.example")]
    with pytest.raises(InvalidStatus, match="400"), streaming(server, additional_headers=headers):
        pass


def test_sockets_that_start_no_session_shut_no_other_client_out() -> None:
    """One address gets half of the places for sockets that have not started."""
    with scripted_engine_server(live_sessions=0) as (_, server), contextlib.ExitStack() as peers:
        for _ in range(PLACES_BEYOND_ENGINE // 2):
            peers.enter_context(raw_socket(server))
        refused = refusal(server)
        assert code_of(refused) == (429, "overloaded")
        assert int(refused.response.headers["retry-after"]) >= 1
        with streaming(server, source_address=("127.0.0.2", 0)) as client:
            assert client.start()["type"] == "ready"
        peers.close()
        wait_until(lambda: metric(server, "stream_sockets") == 0)
        with streaming(server) as client:
            assert client.start()["type"] == "ready"


def test_sessions_hold_no_place_at_the_door() -> None:
    """The engine alone decides how many sessions there may be."""
    with scripted_engine_server(live_sessions=0) as (engine, server), contextlib.ExitStack() as clients:
        engine.live_limit = PLACES_BEYOND_ENGINE
        for _ in range(PLACES_BEYOND_ENGINE):
            assert clients.enter_context(streaming(server)).start()["type"] == "ready"
        last = clients.enter_context(streaming(server))
        last.tell("start", instruction="Transcribe.")
        assert last.fatal() == ("overloaded", 1013)


def test_a_server_that_is_not_ready() -> None:
    engine = FakeEngine()
    engine.may_start.clear()
    with live_server(engine) as server:
        refused = refusal(server)
        engine.may_start.set()
    assert code_of(refused) == (503, "not_ready")
    assert int(refused.response.headers["retry-after"]) >= 1


def test_a_request_that_is_no_websocket(server: LiveServer) -> None:
    reply = server.client.get("/v1/stream")
    assert (reply.status_code, reply.json()["error"]["code"]) == (426, "upgrade_required")


def test_a_websocket_at_an_address_that_has_none(server: LiveServer) -> None:
    for path in ("/v1/nothing", "/health", "/v1/instruct"):
        with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{server.port}{path}", proxy=None):
            pass
        assert code_of(refused.value) == (404, "not_found")


@pytest.mark.parametrize(
    ("error", "close"),
    [
        (Overloaded("Full.", retry_after_s=1), 1013),
        (NotReady("Not now.", retry_after_s=1), 1013),
        (PromptTooLong("Too long."), 1008),
    ],
)
def test_what_the_engine_refuses(server: LiveServer, engine: FakeEngine, error: ServeError, close: int) -> None:
    engine.live_refusal = error
    with streaming(server) as client:
        client.tell("start", instruction="Transcribe.")
        assert client.fatal() == (error.code, close)
    engine.live_refusal = None


@pytest.mark.parametrize(
    ("error", "close"),
    [
        (EngineFailed("It broke."), 1011),
        (NotReady("Stopping."), 1012),
        (PromptTooLong("Too long."), 1008),
        (Overloaded("Full."), 1013),
    ],
)
def test_a_session_that_fails_in_the_engine(server: LiveServer, engine: FakeEngine, error: ServeError, close: int) -> None:
    with streaming(server) as client:
        client.start()
        (session,) = engine.sessions.values()
        engine.end_session(session.request.id)
        session.deliver(Failed(session.request.id, error))
        assert client.fatal() == (error.code, close)
    assert session.request.id not in engine.aborted


BAD_STARTS = {
    "not JSON": ("{", "invalid_request"),
    "no object": ("[]", "invalid_request"),
    "a number": ("1", "invalid_request"),
    "nothing": ("", "invalid_request"),
    "no type": ('{"instruction":"a"}', "invalid_request"),
    "type is no text": ('{"type":["start"]}', "invalid_request"),
    "unknown type": ('{"type":"begin"}', "invalid_request"),
    "NaN": ('{"type":"start","instruction":"a","temperature":NaN}', "invalid_request"),
    "deep": ('{"type":"start","json_schema":' + "[" * 60_000, "invalid_request"),
    "deep and closed": ('{"type":"start","json_schema":' + '{"a":' * 9000 + "1" + "}" * 9001, "invalid_request"),
    "half a character": ('{"type":"start","instruction":"\\ud800"}', "invalid_request"),
    "long": ('{"type":"start","instruction":"' + "a" * 70_000 + '"}', "invalid_request"),
    "flush first": ('{"type":"flush","id":"a"}', "invalid_request"),
    "end first": ('{"type":"end"}', "invalid_request"),
    "no instruction": ('{"type":"start"}', "invalid_instruction"),
    "unknown field": ('{"type":"start","instruction":"a","logprobs":1}', "unknown_field"),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_bad_starts(server: LiveServer, name: str) -> None:
    text, code = BAD_STARTS[name]
    with streaming(server) as client:
        client.socket.send(text)
        assert client.fatal() == (code, 1008)


@pytest.mark.parametrize("kind", ["flush", "update", "end"])
def test_what_comes_before_the_start_is_told_to_begin_with_it(server: LiveServer, kind: str) -> None:
    """Nothing is said yet of its own fields, which are missing here."""
    with streaming(server) as client:
        client.tell(kind)
        assert client.event()["error"]["message"] == f"The first message has to be a start, before any {kind}."


def test_audio_before_the_start(server: LiveServer) -> None:
    with streaming(server) as client:
        client.say(pcm(0.1))
        assert client.fatal() == ("invalid_request", 1008)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("json_schema", {"type": "text"}), ("json_schema", "{}"), ("regex", "("), ("choice", []), ("choice", "a"), ("choice", [1])],
)
def test_constraints_that_mean_nothing(server: LiveServer, engine: FakeEngine, kind: str, value: object) -> None:
    sessions = len(engine.past_sessions)
    with streaming(server) as client:
        client.tell("start", instruction="Transcribe.", **{kind: value})
        assert client.fatal() == ("invalid_constraint", 1008)
    assert len(engine.past_sessions) == sessions


BAD_MESSAGES = {
    "second start": (START, "invalid_request"),
    "flush without id": ({"type": "flush"}, "invalid_request"),
    "flush with a number": ({"type": "flush", "id": 1}, "invalid_request"),
    "flush with a long id": ({"type": "flush", "id": "a" * 65}, "invalid_request"),
    "empty instruction": ({"type": "update", "instruction": " "}, "invalid_instruction"),
    "instruction with more": ({"type": "update", "instruction": "a", "max_tokens": 1}, "unknown_field"),
    "end with more": ({"type": "end", "now": True}, "unknown_field"),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_messages_end_the_session(server: LiveServer, engine: FakeEngine, name: str) -> None:
    message, code = BAD_MESSAGES[name]
    with streaming(server) as client:
        session_id = client.start()["session_id"]
        client.say(pcm(1.0))
        client.until("final")
        client.socket.send(json.dumps(message))
        assert client.fatal() == (code, 1008)
    assert session_id in engine.aborted


def test_nothing_follows_the_end(server: LiveServer, engine: FakeEngine) -> None:
    with streaming(server) as client:
        session_id = client.start()["session_id"]
        session = engine.sessions[session_id]
        # An engine that takes its time over the end.
        engine.end_session(session_id)
        client.tell("end")
        client.say(pcm(0.1))
        assert client.fatal() == ("invalid_request", 1008)
    assert session.inputs == []


BAD_FRAMES = {
    "large text": ([frame(TEXT, b'"' + b"a" * 2**20 + b'"')], 1009),
    "large audio": ([frame(BINARY, bytes(2**18 + 2))], 1009),
    "large in pieces": ([frame(BINARY, bytes(2**17), final=False), frame(0, bytes(2**17 + 2))], 1009),
    "announced only": ([b"\x82\xff" + struct.pack("!Q", 2**62) + bytes(4)], 1009),
    "endless fragments": ([frame(BINARY, b"", final=False), frame(0, b"", final=False) * 5000], 1009),
    "not UTF-8": ([frame(TEXT, b'{"type":"\xff"}')], 1007),
    "unmasked": ([b"\x81\x02{}"], 1002),
    "reserved bit": ([b"\xc1\x80" + bytes(4)], 1002),
    "unknown opcode": ([frame(3, b"")], 1002),
    "continuation of nothing": ([frame(0, b"a")], 1002),
    "long ping": ([frame(9, bytes(126))], 1002),
    "cut control frame": ([frame(9, b"", final=False)], 1002),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
@pytest.mark.parametrize("begun", [False, True], ids=["at first", "in a session"])
def test_hostile_frames(server: LiveServer, engine: FakeEngine, name: str, begun: bool) -> None:
    frames, code = BAD_FRAMES[name]
    with raw_socket(server) as peer:
        if begun:
            peer.sendall(frame(TEXT, json.dumps(START).encode()))
            wait_until(lambda: len(engine.sessions) == 1)
        for data in frames:
            peer.sendall(data)
        assert close_code(peer) == code
    wait_until(lambda: engine.sessions == {})


def test_many_pings_are_answered_and_change_nothing(server: LiveServer) -> None:
    with streaming(server) as client:
        client.start()
        for number in range(500):
            client.socket.ping(f"{number}").wait(20)
        client.say(pcm(1.0))
        assert client.until("final")[-1]["text"] == "Transcribe. 0"


def test_a_handshake_that_is_cut_off(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(b"GET /v1/stream HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 4")
