"""uvicorn's WebSocket connections, fit for peers that vanish, do not read, or send faster than the server reads.

The additions rest on uvicorn's internals, so its version is pinned; `tests/server/api/test_web_socket.py` shows the need for
each.
"""

import asyncio
import contextlib
import select
import socket
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent, WebSocketReceiveEvent
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame

from server.api.access.shares import LEAST_PROGRESS_BYTES, Shares

STATE = "connection"
# Receive buffer of a connection in the kernel. Its default holds minutes of audio, which pings would wait behind.
RECEIVE_BUFFER_BYTES = 64 * 1024
# Bytes that are parsed at a time, so that many small frames hold up no other connection.
PIECE_BYTES = 8192
MAX_FRAGMENTS = 1024
# Messages that may wait for the handler, and their bytes: half a minute of audio. Pings behind them are answered.
MAX_WAITING_MESSAGES = 1024
MAX_WAITING_BYTES = 2**20
# Interval of checks on a connection that is not being read.
CHECK_S = 1.0
# Time for a peer to read the last bytes and to close.
CLOSE_S = 5.0
# Shorter messages are not counted: they are many, and the limit on connections bounds them.
SMALL_MESSAGE_BYTES = 64 * 1024
# The memory that unfinished messages may hold together, shared between clients.
UNFINISHED_BYTES = 64 * 2**20


class Connection:
    """The state of a WebSocket's connection for its handler, as `state.connection` of the scope.

    `changed` is set when the connection is `lost`, or when the server is `going_away` and the handler has to end the session. The
    last ping of the client came at `pinged_s` by the event loop's clock. A handler may set `max_message_bytes` before it accepts.
    """

    def __init__(self, max_message_bytes: int | None) -> None:
        self.lost = False
        self.going_away = False
        self.changed = asyncio.Event()
        self.pinged_s = float("-inf")
        self.max_message_bytes = max_message_bytes


class MessageMemory:
    """The memory for the unfinished messages of all WebSockets of one server.

    A message gets on if 4 KiB of it come in `timeout_s`, as a body of an upload does.
    """

    def __init__(self, timeout_s: float) -> None:
        self.shares = Shares(UNFINISHED_BYTES)
        self.timeout_s = timeout_s


class UnfinishedMessage:
    """The bytes that one WebSocket of a client has received of a message whose end is missing."""

    def __init__(self, memory: MessageMemory, client: str) -> None:
        self._memory = memory
        self._client = client
        self._held_bytes = 0
        self._bytes = self._marked_bytes = 0
        self._marked_s = 0.0

    def hold(self, count: int, now_s: float) -> bool:
        """Take note of how many bytes there are at this moment; return whether there is room for them."""
        if not self._bytes or count < self._bytes or count - self._marked_bytes >= LEAST_PROGRESS_BYTES:
            self._marked_bytes, self._marked_s = count, now_s
        self._bytes = count
        more = max(0, count - SMALL_MESSAGE_BYTES) - self._held_bytes
        if more > 0 and not self._memory.shares.take(self._client, more):
            return False
        if more < 0:
            self._memory.shares.give_back(self._client, -more)
        self._held_bytes += more
        return True

    def wait(self, now_s: float) -> None:
        """Take note that at this moment the server was behind, and not the peer."""
        self._marked_s = now_s

    def has_stalled(self, now_s: float) -> bool:
        """Return whether the message has not got on for too long."""
        return self._held_bytes > 0 and now_s - self._marked_s >= self._memory.timeout_s

    def close(self) -> None:
        """Give the room back."""
        self.hold(0, 0.0)


class WebSocketConnection(WebSocketsSansIOProtocol):
    """The protocol class for uvicorn's `ws` setting.

    Reading stops while `MAX_WAITING_MESSAGES` or `MAX_WAITING_BYTES` wait for the handler, and while the peer does not read. A
    peer that left is noticed within `CHECK_S` even then. Once the handler is done, the connection is gone within `CLOSE_S`,
    whatever the peer does.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._connection = Connection(config.ws_max_size)
        super().__init__(config, server_state, {**app_state, STATE: self._connection}, _loop)
        self._received = False
        self._unread = bytearray()
        self._waiting_bytes = 0
        self._reading: asyncio.Handle | None = None
        self._checking: asyncio.TimerHandle | None = None
        self._aborting: asyncio.TimerHandle | None = None
        self.place = contextlib.ExitStack()
        """Closed when the connection is lost."""
        self.unfinished: UnfinishedMessage | None = None
        """Decides whether more of a message is taken; without it there is no limit but that of each message."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._checking = self.loop.call_later(CHECK_S, self._check_peer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.place.close()
        self._drop_message()
        for handle in (self._reading, self._checking, self._aborting):
            if handle is not None:
                handle.cancel()
        self._connection.lost = True
        self._connection.changed.set()

    def data_received(self, data: bytes) -> None:
        self._received = True
        self._unread += data
        self._continue_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._continue_reading()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        if message["type"] == "websocket.receive":
            self._waiting_bytes -= _size(message)
        self._pause_or_continue()
        self._continue_reading()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        await self.writable.wait()
        if self.close_sent or self.disconnected:
            # A handler that has not begun learns of the end from `receive`.
            if message["type"] in ("websocket.send", "websocket.close"):
                raise ClientDisconnected
            return
        if message["type"] == "websocket.accept":
            self.conn.max_message_size = self._connection.max_message_bytes
        await super().send(message)
        # uvicorn would log a refusal as a handler that forgot to answer.
        self.handshake_complete |= message["type"] == "websocket.http.response.body"
        self._continue_reading()

    def handle_ping(self) -> None:
        self._connection.pinged_s = self.loop.time()
        super().handle_ping()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            # Empty fragments never reach the limit on bytes.
            self._refuse(CloseCode.MESSAGE_TOO_BIG)

    def send_receive_event_to_app(self) -> None:
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            # uvicorn would log a traceback for each such message.
            self._refuse(CloseCode.INVALID_DATA)
        else:
            if not self.close_sent:
                self._waiting_bytes += sum(map(len, self.frames))
            super().send_receive_event_to_app()
            self._pause_or_continue()

    def handle_parser_exception(self) -> None:
        # Further bytes are read and dropped: closing at once would reset the connection before the peer learns why.
        if self.close_sent:
            return
        self.close_sent = True
        code = CloseCode.INTERNAL_ERROR if self.conn.close_sent is None else self.conn.close_sent.code
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_timer = self.loop.call_later(CLOSE_S, self.transport.close)
        self.read_paused = False

    def send_keepalive_ping(self) -> None:
        self._received = False
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if self._received or self.read_paused:
            # The peer is alive; its pong may lie behind audio that is not read yet.
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()
        # Bytes that wait to be written would keep the connection open for ever.
        self.transport.abort()

    def shutdown(self) -> None:
        if self.close_sent or not self.handshake_complete:
            super().shutdown()
            return
        self._connection.going_away = True
        self._connection.changed.set()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if not self.disconnected:
            self._aborting = self.loop.call_later(CLOSE_S, self.transport.abort)

    def _refuse(self, code: CloseCode, reason: str = "") -> None:
        self.conn.fail(code, reason)
        self._drop_message()
        self.handle_parser_exception()

    def _drop_message(self) -> None:
        """Free the bytes of an unfinished message, which a connection would hold until Python looks for cycles."""
        self.frames = []
        self.conn.reader.discard()
        if self.unfinished is not None:
            self.unfinished.close()

    def _hold_message(self) -> None:
        """Refuse a message that there is no room for."""
        if self.unfinished is None or self.close_sent:
            return
        count = len(self.conn.reader.buffer) + sum(map(len, self.frames))
        if not self.unfinished.hold(count, self.loop.time()):
            self._refuse(CloseCode.TRY_AGAIN_LATER, "Too much is being sent; try again soon.")

    def _pause_or_continue(self) -> None:
        """Say whether reading is paused, because too much waits for the handler."""
        self.read_paused = self._waiting_bytes >= MAX_WAITING_BYTES or self.queue.qsize() >= MAX_WAITING_MESSAGES

    def _continue_reading(self) -> None:
        """Parse the bytes that came, as far as the handler and the peer follow; only then read more from the network.

        Every ping is answered, so a peer that does not read must not be read either.
        """
        held = self.read_paused or not self.writable.is_set()
        if self._unread and not held and self._reading is None:
            self._reading = self.loop.call_soon(self._parse_piece)
        if self._unread or held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _parse_piece(self) -> None:
        self._reading = None
        piece = bytes(self._unread[:PIECE_BYTES])
        del self._unread[:PIECE_BYTES]
        super().data_received(piece)
        self._hold_message()
        self._continue_reading()

    def _check_peer(self) -> None:
        self._checking = self.loop.call_later(CHECK_S, self._check_peer)
        if self.unfinished is not None and not self.close_sent:
            if self._unread or self.read_paused:
                self.unfinished.wait(self.loop.time())
            elif self.unfinished.has_stalled(self.loop.time()):
                self._refuse(CloseCode.POLICY_VIOLATION, "The message did not get on.")
        if not self.transport.is_reading() and hung_up(self.transport):
            self.transport.abort()


def hung_up(transport: asyncio.Transport) -> bool:
    """Return whether the peer has left or will send nothing more, which a transport that is not read does not notice."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def _size(message: WebSocketReceiveEvent) -> int:
    """Return the bytes of a message in the frames that it came in."""
    content = message.get("bytes")
    return len((message.get("text") or "").encode()) if content is None else len(content)
