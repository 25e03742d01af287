"""uvicorn's WebSocket connections, fit for peers that vanish, do not read, or send faster than they are listened to.

What it adds rests on how uvicorn works inside, which is why its version is pinned; `tests/test_web_socket.py` shows each need.
"""

import asyncio
import select
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame

STATE = "connection"
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

    Reading stops while a message waits for the handler, and while the peer does not take what was written. A peer that left is
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
        self._looking: asyncio.TimerHandle | None = None
        self._aborting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._looking = self.loop.call_later(LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._looking, self._aborting):
            if timer is not None:
                timer.cancel()
        self._connection.lost = True
        self._connection.changed.set()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        super().data_received(data)
        # Every ping has an answer, which a peer that does not read would have us keep.
        if not self.writable.is_set():
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    async def receive(self) -> ASGIReceiveEvent:
        await self.writable.wait()
        return await super().receive()

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

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            # Empty ones never reach the limit on bytes.
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()

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
        self.transport.resume_reading()

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

    def _look(self) -> None:
        self._looking = self.loop.call_later(LOOK_S, self._look)
        if not self.transport.is_reading() and _hung_up(self.transport):
            self.transport.abort()


def _hung_up(transport: asyncio.Transport) -> bool:
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
