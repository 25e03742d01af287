"""Plain data over a stream socket between this process and its child, each message whole or not at all."""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

from server.engine.ipc.codec import decode, encode

LENGTH = struct.Struct("<Q")
# The kernel cuts it to what the system allows; the more fits, the fewer wake-ups a request's audio costs.
SOCKET_BUFFER_BYTES = 2**20
READ_BYTES = 2**20


class Channel:
    """One end. Any thread may send, one may receive."""

    def __init__(self, end: socket.socket) -> None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._socket = end
        self._sending = threading.Lock()
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        # Reused: memory that is new for every message costs more than the copy.
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._received = bytearray()

    def send(self, message: bytes) -> None:
        """Send what `pack` made; blocks while the other end does not read. Raises `OSError` where it is gone."""
        with self._sending:
            self._socket.sendall(message)

    def send_some(self, message: bytes) -> bytes:
        """Send what the socket takes without blocking; the rest. For a thread that knows that no other one sends."""
        try:
            return message[self._socket.send(message, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return message

    def receive(self, timeout_s: float | None = None) -> list[Any]:
        """The messages that have arrived, none after the timeout. Raises `EOFError` once the other end is closed.

        A message of which only a part has arrived does not block.
        """
        if self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            try:
                count = self._socket.recv_into(self._buffer, flags=socket.MSG_DONTWAIT)
            except ConnectionResetError:
                count = 0
            if count == 0:
                raise EOFError
            self._received += self._buffer[:count]
        return list(self._whole_messages())

    def finish(self) -> None:
        """Let the other end meet its `EOFError` after all that was sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """End both directions at once; a `send` that blocks in another thread fails."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _whole_messages(self) -> Iterator[Any]:
        start = 0
        with memoryview(self._received) as received:
            while len(received) - start >= LENGTH.size:
                end = start + LENGTH.size + LENGTH.unpack_from(received, start)[0]
                if end > len(received):
                    break
                with received[start + LENGTH.size : end] as message:
                    yield decode(message)
                start = end
        del self._received[:start]


def pack(message: object) -> bytes:
    """A message for `Channel.send`. Raises `TypeError` for what `encode` does not take."""
    data = encode(message)
    return LENGTH.pack(len(data)) + data
