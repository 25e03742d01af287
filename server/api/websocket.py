"""uvicorn's WebSocket connections, fit for peers that vanish, do not read, or send faster than they are listened to.

What it adds rests on how uvicorn works inside, which is why its version is pinned;
`tests/server/api/test_web_socket.py` shows each need.
"""

import asyncio
import select
import socket
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame

STATE = "connection"
# What the kernel keeps for a connection that is not read. By itself it may take in minutes of audio, which pings wait behind.
RECEIVE_BUFFER_BYTES = 64 * 1024
# Bytes that are taken in at a time, so that many small frames hold up no other connection.
PIECE_BYTES = 8192
MAX_FRAGMENTS = 1024
# How often a connection that is not being read is looked at.
LOOK_S = 1.0
# What a peer gets to take the last bytes and to close.
CLOSE_S = 5.0


class Connection:
    """What the handler of a WebSocket may learn of its connection beside the messages: it is `state.connection` of the scope.

    `changed` is set whenever one of the others comes true: the connection is `lost`, or the server is `going_away` and it is
    for the handler to end it.
    """

    def __init__(self) -> None:
        self.lost = False
        self.going_away = False
        self.changed = asyncio.Event()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """The protocol class for uvicorn's `ws` setting.

    Reading stops while messages wait for the handler, and while the peer does not take what was written. A peer that left is
    noticed within `LOOK_S` even then. Once the handler is done, the connection is gone within `CLOSE_S`, whatever the peer does.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._connection = Connection()
        super().__init__(config, server_state, {**app_state, STATE: self._connection}, _loop)
        self._heard = False
        self._unread = bytearray()
        self._reading: asyncio.Handle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._aborting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._looking = self.loop.call_later(LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for handle in (self._reading, self._looking, self._aborting):
            if handle is not None:
                handle.cancel()
        self._connection.lost = True
        self._connection.changed.set()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._unread += data
        self._read_on()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_on()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        self._read_on()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        await self.writable.wait()
        if self.close_sent or self.disconnected:
            # A handler that has not begun learns it from what it receives.
            if message["type"] in ("websocket.send", "websocket.close"):
                raise ClientDisconnected
            return
        await super().send(message)
        # uvicorn would log a refusal as a handler that forgot to answer.
        self.handshake_complete |= message["type"] == "websocket.http.response.body"
        self._read_on()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            # Empty ones never reach the limit on bytes.
            self._refuse(CloseCode.MESSAGE_TOO_BIG)

    def send_receive_event_to_app(self) -> None:
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            # uvicorn would log the traceback of each.
            self._refuse(CloseCode.INVALID_DATA)
        else:
            super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        # What still comes is read and dropped: closing at once would reset the connection, and the peer never learn why.
        if self.close_sent:
            return
        self.close_sent = True
        code = CloseCode.INTERNAL_ERROR if self.conn.close_sent is None else self.conn.close_sent.code
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_timer = self.loop.call_later(CLOSE_S, self.transport.close)
        self.read_paused = False

    def send_keepalive_ping(self) -> None:
        self._heard = False
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if self._heard or self.read_paused:
            # It is alive; its pong may lie behind audio that is not read yet.
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()
        # What waits to be written would keep it open for ever.
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

    def _refuse(self, code: CloseCode) -> None:
        self.frames = []
        self.conn.fail(code)
        self.handle_parser_exception()

    def _read_on(self) -> None:
        """Take in what came, as far as it can be taken; only then comes more from the network.

        Every ping has an answer, so that a peer that does not read must not be read either.
        """
        held = self.read_paused or not self.writable.is_set()
        if self._unread and not held and self._reading is None:
            self._reading = self.loop.call_soon(self._take_piece)
        if self._unread or held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _take_piece(self) -> None:
        self._reading = None
        piece = bytes(self._unread[:PIECE_BYTES])
        del self._unread[:PIECE_BYTES]
        super().data_received(piece)
        self._read_on()

    def _look(self) -> None:
        self._looking = self.loop.call_later(LOOK_S, self._look)
        if not self.transport.is_reading() and _hung_up(self.transport):
            self.transport.abort()


def _hung_up(transport: asyncio.Transport) -> bool:
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
