"""The additions to uvicorn's WebSockets: a busy server does not lose live peers, and peers that only write are bounded."""

import contextlib
import gc
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from server.api import lifecycle as launch
from server.api.websocket import MAX_WAITING_MESSAGES, PIECE_BYTES, RECEIVE_BUFFER_BYTES, WebSocketConnection
from server.engine.types.requests import Audio
from tests.support.clients.live_server import LiveServer, live_server, wait_until
from tests.support.clients.stream_client import BINARY, PING, TEXT, close_code, frame, metric, pcm, raw_socket, streaming
from tests.support.fakes.fake_engine import FakeEngine

PING_S = 0.1
START = frame(TEXT, b'{"type":"start","instruction":"Transcribe."}')


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def quick_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PING_S", PING_S)


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[LiveServer]:
    with live_server(engine, live_backlog_s=1.0) as live:
        wait_until(lambda: engine.stats().ready)
        yield live


@pytest.mark.usefixtures("quick_pings")
def test_a_pong_behind_unread_audio_is_waited_for(server: LiveServer, engine: FakeEngine) -> None:
    with streaming(server) as client:
        client.start(partials=False)
        (session,) = engine.sessions.values()
        engine.listens = False
        for _ in range(8):
            client.say(pcm(0.5))
        time.sleep(6 * PING_S)
        engine.listens = True
        engine.push(session.request.id, Audio(np.empty(0, np.float32)))
        client.tell("end")
        events, close = client.events()
    assert (events[-1]["type"], events[-1]["audio_s"], close.code) == ("ended", 4.0, 1000)


def server_side(server: LiveServer) -> WebSocketConnection:
    """Return the only connection of this server."""
    connections = [thing for thing in gc.get_objects() if type(thing) is WebSocketConnection]
    (connection,) = (each for each in connections if each.server is not None and each.server[1] == server.port)
    return connection


def test_the_kernel_keeps_little_of_what_is_not_read(server: LiveServer) -> None:
    with raw_socket(server):
        kept_bytes = server_side(server).transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    # Linux counts its own overhead too.
    assert kept_bytes <= 2 * RECEIVE_BUFFER_BYTES


def test_few_messages_wait_however_small_they_are(server: LiveServer, engine: FakeEngine) -> None:
    with raw_socket(server) as peer:
        peer.sendall(START)
        engine.listens = False
        peer.sendall(frame(BINARY, pcm(2.0)) + frame(BINARY, b"") * 100_000)
        connection = server_side(server)
        wait_until(lambda: not connection.queue.empty())
        time.sleep(0.1)
        assert connection.queue.qsize() <= MAX_WAITING_MESSAGES + PIECE_BYTES / len(frame(BINARY, b""))


def test_pings_are_answered_while_the_engine_is_behind(server: LiveServer, engine: FakeEngine) -> None:
    """Half a minute of audio waits, which is a mebibyte."""
    with streaming(server) as client:
        client.start(partials=False)
        (session,) = engine.sessions.values()
        engine.listens = False
        for _ in range(60):
            client.say(pcm(0.5))
        assert client.socket.ping().wait(10)
        assert session.audio_s < 2.0
        engine.listens = True
        engine.push(session.request.id, Audio(np.empty(0, np.float32)))
        client.tell("end")
        events, _ = client.events()
    assert events[-1]["audio_s"] == 30.0


@pytest.mark.usefixtures("quick_pings")
def test_who_talks_need_not_answer_pings(server: LiveServer, engine: FakeEngine) -> None:
    with raw_socket(server) as peer:
        peer.sendall(START)
        for _ in range(30):
            peer.sendall(frame(BINARY, pcm(0.01)))
            time.sleep(PING_S / 4)
        assert len(engine.sessions) == 1
        assert engine.aborted == []


@pytest.mark.usefixtures("quick_pings")
def test_who_neither_talks_nor_answers_pings_is_gone(server: LiveServer, engine: FakeEngine) -> None:
    with raw_socket(server) as peer:
        peer.sendall(START)
        assert close_code(peer) == 1011
        wait_until(lambda: len(engine.aborted) == 1)
        assert metric(server, 'stream_sessions_total{model="fake-model",outcome="client_left"}') == 1


def test_answers_to_pings_do_not_pile_up(engine: FakeEngine) -> None:
    """A peer that does not read its pongs is not read either, once the network between the two is full."""
    pings = frame(PING, bytes(125)) * 4000
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        write_on(raw_socket(server), pings)


def write_on(peer: socket.socket, pings: bytes) -> None:
    """Fail if the server reads on and on."""
    with peer:
        peer.settimeout(0.5)
        sent_bytes = 0
        with contextlib.suppress(TimeoutError):
            while sent_bytes < 2**27:
                sent_bytes += peer.send(pings)
    assert sent_bytes < 2**27
