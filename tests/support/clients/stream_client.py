"""A client of `/v1/stream` for tests, and raw frames for tests that need them."""

import contextlib
import os
import socket
import struct
from base64 import b64encode
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from websockets.sync.client import connect

from tests.support.clients.event_socket import TIMEOUT_S, EventSocket
from tests.support.clients.live_server import LiveServer, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_live import FakeSession

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


def pcm(duration_s: float, rate_hz: int = 16_000) -> bytes:
    """Return a tone."""
    return (tone(duration_s, rate_hz) * 32767).astype("<i2").tobytes()


class StreamClient(EventSocket):
    """One WebSocket to the server."""

    def start(self, instruction: str = "Transcribe.", **fields: object) -> dict[str, Any]:
        """Start the session; return the first event."""
        self.tell("start", instruction=instruction, **fields)
        return self.event()

    def fatal(self) -> tuple[str, int]:
        """Return the code of the error that ends the session, after checking its shape, and the close code."""
        events, close = self.events()
        event = events[-1]
        assert set(event) == {"type", "error", "request_id", "fatal"}, event
        assert set(event["error"]) == {"message", "type", "param", "code"}
        assert (event["type"], event["fatal"]) == ("error", True)
        return event["error"]["code"], close.code


@contextlib.contextmanager
def streaming(server: LiveServer, **options: Any) -> Iterator[StreamClient]:
    """Connect a client that has sent nothing yet."""
    url = f"ws://127.0.0.1:{server.port}/v1/stream"
    with connect(url, compression=None, proxy=None, close_timeout=TIMEOUT_S, **options) as socket:
        yield StreamClient(socket)


def raw_socket(server: LiveServer, path: str = "/v1/stream") -> socket.socket:
    """Return a TCP connection that was accepted as a WebSocket."""
    peer = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S)
    key = b64encode(os.urandom(16)).decode()
    peer.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    reply = b""
    while b"\r\n\r\n" not in reply:
        reply += peer.recv(1)
    assert reply.startswith(b"HTTP/1.1 101 "), reply
    return peer


def frame(opcode: int, content: bytes, *, final: bool = True) -> bytes:
    """Return a client's frame, masked with zeros."""
    length = len(content)
    if length < 126:
        size = bytes([0x80 | length])
    else:
        size = b"\xfe" + struct.pack("!H", length) if length < 65_536 else b"\xff" + struct.pack("!Q", length)
    return bytes([final << 7 | opcode]) + size + bytes(4) + content


def close_code(peer: socket.socket) -> int:
    """Return the code of the server's close frame; frames before it are skipped."""
    with peer.makefile("rb") as received:
        return next(int(struct.unpack("!H", content[:2])[0]) for opcode, content in read_frames(received) if opcode == CLOSE)


def read_frames(received: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield opcode and content of the server's frames, which are never fragments, until the connection ends."""
    while head := received.read(2):
        length = head[1]
        if length >= 126:
            (length,) = struct.unpack("!H" if length == 126 else "!Q", received.read(2 if length == 126 else 8))
        yield head[0] & 0x0F, received.read(length)


def reset(peer: socket.socket) -> None:
    """Reset the connection."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def metric(server: LiveServer, sample: str) -> float:
    """Return the value of a sample by its whole name, labels included."""
    lines = server.client.get("/metrics").text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == f"thinbridge_{sample}")


def open_files(server: LiveServer) -> int:
    """Return the number of open files of this process, which has both ends of every connection.

    The connection that `server.client` keeps is part of every count.
    """
    server.client.get("/health")
    return len(os.listdir("/proc/self/fd"))


def samples_of(audio: bytes) -> npt.NDArray[np.float32]:
    """Return the samples that the server decodes from PCM at the model's rate."""
    return np.frombuffer(audio, "<i2").astype(np.float32) / np.float32(32768)


def only_session(engine: FakeEngine) -> FakeSession:
    """Return the one live session of a scripted engine, once it is there."""
    wait_until(lambda: len(engine.sessions) == 1)
    return next(iter(engine.sessions.values()))
