"""Unfinished messages of WebSockets hold so much memory together, and each has to get on."""

import contextlib
import select
import socket
import struct

import pytest

from server.api import websocket
from server.api.websocket import SMALL_MESSAGE_BYTES, UNFINISHED_BYTES, MessageMemory, UnfinishedMessage
from tests.support.clients.live_server import live_server, wait_until
from tests.support.clients.stream_client import CLOSE, TEXT, close_code, frame, metric, raw_socket
from tests.support.fakes.fake_engine import FakeEngine

LARGE_BYTES = 15 * 2**20
TRY_AGAIN_LATER, POLICY_VIOLATION = 1013, 1008


def test_one_client_gets_half_and_another_has_room() -> None:
    memory = MessageMemory(30.0)
    first = [UnfinishedMessage(memory, "first") for _ in range(20)]
    assert sum(each.hold(LARGE_BYTES, 0.0) for each in first) == UNFINISHED_BYTES // 2 // LARGE_BYTES == 2
    assert UnfinishedMessage(memory, "second").hold(LARGE_BYTES, 0.0)
    for each in first:
        each.close()
    assert UnfinishedMessage(memory, "third").hold(LARGE_BYTES, 0.0)


def test_small_messages_take_no_room() -> None:
    memory = MessageMemory(30.0)
    many = [UnfinishedMessage(memory, "client") for _ in range(2000)]
    assert all(each.hold(SMALL_MESSAGE_BYTES, 0.0) for each in many)
    assert UnfinishedMessage(memory, "client").hold(LARGE_BYTES, 0.0)


def test_a_message_that_is_over_gives_its_room_back() -> None:
    memory = MessageMemory(30.0)
    message = UnfinishedMessage(memory, "client")
    for _ in range(50):
        assert message.hold(LARGE_BYTES, 0.0)
        assert message.hold(100, 0.0)


def test_a_large_message_has_to_get_on() -> None:
    message = UnfinishedMessage(MessageMemory(30.0), "client")
    message.hold(SMALL_MESSAGE_BYTES + 1, 0.0)
    message.hold(SMALL_MESSAGE_BYTES + 4000, 29.0)
    assert not message.has_stalled(29.9)
    assert message.has_stalled(30.0)
    message.hold(SMALL_MESSAGE_BYTES + 4097, 30.0)
    assert not message.has_stalled(59.9)
    message.wait(60.0)
    assert not message.has_stalled(89.9)
    assert message.has_stalled(90.0)


def test_a_small_message_may_rest() -> None:
    message = UnfinishedMessage(MessageMemory(30.0), "client")
    message.hold(SMALL_MESSAGE_BYTES, 0.0)
    assert not message.has_stalled(1000.0)


def read_frame(peer: socket.socket) -> tuple[int, bytes]:
    """Return opcode and content of the next frame."""
    first, length = peer.recv(2, socket.MSG_WAITALL)
    if length == 126:
        (length,) = struct.unpack("!H", peer.recv(2, socket.MSG_WAITALL))
    return first & 0x0F, peer.recv(length, socket.MSG_WAITALL)


WHOLE = bytes([0x80 | TEXT, 0xFF]) + struct.pack("!Q", LARGE_BYTES) + bytes(4) + bytes(300_000)
FRAGMENTS = frame(TEXT, b"", final=False) + frame(0, bytes(300_000), final=False)


@pytest.mark.parametrize("sent", [WHOLE, FRAGMENTS], ids=["one frame", "fragments"])
def test_a_message_that_has_no_room_is_refused_and_the_others_stay(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(websocket, "UNFINISHED_BYTES", 2**20)
    with live_server(FakeEngine()) as server, contextlib.ExitStack() as held:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        peers = [held.enter_context(raw_socket(server, "/v1/realtime")) for _ in range(3)]
        for peer in peers:
            assert read_frame(peer)[0] == TEXT
            peer.sendall(sent)
        closed: list[bytes] = []
        while not closed:
            closed = [content for opcode, content in map(read_frame, select.select(peers, [], [])[0]) if opcode == CLOSE]
        assert [content[:2] for content in closed] == [struct.pack("!H", TRY_AGAIN_LATER)]
        wait_until(lambda: metric(server, "stream_sockets") == 2)


def test_a_message_that_does_not_get_on_ends_its_session() -> None:
    with live_server(FakeEngine(), body_timeout_s=0.2) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        with raw_socket(server, "/v1/realtime") as peer:
            assert read_frame(peer)[0] == TEXT
            peer.sendall(WHOLE)
            assert close_code(peer) == POLICY_VIOLATION
