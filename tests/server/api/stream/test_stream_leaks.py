"""Sessions that are dropped at any point leave nothing behind: no task, no file, no session, no object."""

import asyncio
import gc
import random
import socket
from collections import Counter
from collections.abc import Container, Iterator
from typing import Any
from weakref import WeakSet

import pytest

from server.api import websocket as web_socket
from server.api.live.session import SocketSession
from server.api.websocket import WebSocketConnection
from tests.support.clients.live_server import LiveServer, live_server, wait_until
from tests.support.clients.stream_client import BINARY, PING, TEXT, frame, metric, open_files, pcm, raw_socket, reset
from tests.support.fakes.fake_engine import FakeEngine

SESSIONS = 60
MOST_AT_A_TIME = 25
SAID = [
    frame(TEXT, b'{"type":"start","instruction":"Transcribe."}'),
    frame(BINARY, pcm(0.5)),
    frame(BINARY, pcm(0.8)),
    frame(TEXT, b'{"type":"flush","id":"a"}'),
    frame(PING, b"ping"),
    frame(BINARY, pcm(0.5)),
    frame(TEXT, b'{"type":"update","instruction":"Translate."}'),
    frame(BINARY, pcm(3.0)),
    frame(TEXT, b'{"type":"end"}'),
]


def drop(peer: socket.socket, how: str) -> None:
    match how:
        case "close":
            peer.sendall(frame(8, b"\x03\xe8"))
            peer.close()
        case "fin":
            peer.close()
        case _:
            reset(peer)


def things() -> Iterator[Any]:
    """Return the objects of this process, which the server is a part of."""
    gc.collect()
    for thing in gc.get_objects():
        is_task = type(thing) is asyncio.Task and not thing.done()
        if is_task or type(thing) in (SocketSession, WebSocketConnection):
            yield thing


def held(server: LiveServer, older: Container[Any]) -> Counter[str]:
    """Return the open files, and the number of objects of each kind besides the `older` ones."""
    return Counter({"files": open_files(server)}) + Counter(type(thing).__name__ for thing in things() if thing not in older)


def begin(server: LiveServer, dice: random.Random) -> socket.socket:
    """Run a session that breaks off anywhere, even in the middle of a frame."""
    said = b"".join(SAID[: dice.randint(0, len(SAID))])
    peer = raw_socket(server)
    peer.sendall(said[: dice.choice([len(said), dice.randint(0, len(said))])])
    return peer


def test_dropped_sessions_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_socket, "CLOSE_S", 0.3)
    monkeypatch.setattr(web_socket, "CHECK_S", 0.1)
    dice = random.Random(4)
    engine = FakeEngine()
    engine.live_limit = SESSIONS
    with live_server(engine, live_idle_timeout_s=0.5) as server:
        wait_until(lambda: engine.stats().ready)
        # Servers of other tests are counted too.
        older = WeakSet(things())
        before = held(server, older)
        peers: list[tuple[socket.socket, str]] = []
        abandoned: list[socket.socket] = []
        for _ in range(SESSIONS):
            peers.append((begin(server, dice), dice.choice(["close", "fin", "rst", "silence"])))
            while len(peers) > MOST_AT_A_TIME or (peers and dice.random() < 0.4):
                peer, how = peers.pop(dice.randrange(len(peers)))
                if how == "silence":
                    abandoned.append(peer)
                else:
                    drop(peer, how)
        for peer, how in peers:
            drop(peer, how)
        assert len(abandoned) > 5
        wait_until(lambda: metric(server, "stream_sockets") == 0)
        assert engine.sessions == {}
        # The scripted engine remembers its sessions.
        engine.past_sessions.clear()
        # The server has closed its ends; ours are still open.
        wait_until(lambda: held(server, older)["WebSocketConnection"] == 0)
        for peer in abandoned:
            peer.close()
        wait_until(lambda: held(server, older) == before)
