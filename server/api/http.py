"""uvicorn's HTTP connections, fit for peers that say nothing, read nothing, or send what costs much and brings little.

The additions rest on uvicorn's internals, so its version is pinned; `tests/server/api/test_http.py` shows the need for each.
"""

import asyncio
import contextlib
import json
import uuid
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from server.api.access.proxies import TrustedProxies, client_name
from server.api.access.shares import Shares
from server.api.error_replies import openai_body
from server.api.websocket import MessageMemory, UnfinishedMessage, WebSocketConnection, hung_up
from server.errors import HeadTimedOut, HeadTooLarge, InvalidRequest, Overloaded, ServeError, UpgradeRequired

# Bytes that are parsed at a time, so that many small chunks or requests hold up no other connection.
PIECE_BYTES = 16 * 1024
MAX_HEAD_BYTES = 32 * 1024
# A body whose chunk sizes take more bytes than its content, and more than this, is an attack.
MAX_FRAMING_BYTES = 64 * 1024
# Interval of looks at each connection.
CHECK_S = 1.0
# Time in which a peer may still send what is thrown away, so that it reads the reply before it learns of the end.
LINGER_S = 5.0
# The rest of a body that is not wanted is read for the sake of the connection, if it is no longer than this.
MAX_UNWANTED_BYTES = 2**20
WEBSOCKET_VERSION = b"13"


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of all connections of one server, which share its `places` by address; trusted proxies may take all."""

    places: Shares
    proxies: TrustedProxies
    messages: MessageMemory
    header_timeout_s: float
    write_timeout_s: float

    def protocol(self) -> type[asyncio.Protocol]:
        """Return the factory of connections for uvicorn's `http` setting."""
        return cast(type[asyncio.Protocol], partial(HttpConnection, self))

    def unfinished_message(self, address: str, port: int) -> UnfinishedMessage:
        """Return the count of what a WebSocket of this peer sends. Each connection of a trusted proxy is a client of its own."""
        return UnfinishedMessage(self.messages, f"{address} {port}" if address in self.proxies else client_name(address))

    def take_place(self, address: str) -> Callable[[], None] | None:
        """Return what gives the place back, or None if there is none for this address."""
        if address in self.proxies:
            return lambda: None
        name = client_name(address)
        if not self.places.take(name):
            return None
        return lambda: self.places.give_back(name)


class HttpConnection(HttpToolsProtocol):
    """One connection. The head of each request has to come in time, and answers have to be read.

    Bytes are parsed in pieces, one in each turn of the event loop, and the next request not before the one at hand is answered. A
    reply to a request whose body is not read says `Connection: close`, unless the rest of that is short.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._place = contextlib.ExitStack()
        self._unread = bytearray()
        self._parsing: asyncio.Handle | None = None
        self._checking: asyncio.TimerHandle | None = None
        # The request whose handler runs; `cycle` is the one that was parsed last.
        self._running: RequestResponseCycle | None = None
        self._problem: ServeError | None = None
        self._in_head = False
        self._in_body = False
        self._head_bytes = self._framing_bytes = 0
        # Bytes of the body that are still to come; None where that is not declared.
        self._left_bytes: int | None = 0
        # Since when the peer owes the head of a request, an end, or reading; None while it owes nothing.
        self._head_owed_s: float | None = None
        self._end_owed_s: float | None = None
        self._reading_owed_s: float | None = None
        self._unwritten_bytes = 0
        # Whether the reply says that the connection ends behind it, and whether all that comes is thrown away.
        self._ends = self._discards = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self._continue_reading)
        self._head_owed_s = self.loop.time()
        self._checking = self.loop.call_later(CHECK_S, self._check_peer)
        give_back = self._limits.take_place(self.client[0] if self.client else "")
        if give_back is None:
            self._refuse(Overloaded("Too many connections are open; try again later.", retry_after_s=1))
        else:
            self._place.callback(give_back)

    def connection_lost(self, exc: Exception | None) -> None:
        self._place.close()
        for handle in (self._parsing, self._checking):
            if handle is not None:
                handle.cancel()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._discards:
            return
        if self._unread or self._is_held or len(data) > PIECE_BYTES:
            self._unread += data
            self._continue_reading()
        else:
            self._parse(data)

    def eof_received(self) -> None:
        # The transport closes itself now. A peer that has sent all and still reads looks just like one that has left.
        self._unread.clear()

    # The parser's findings.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._in_body = True, False
        self._head_bytes = self._framing_bytes = 0
        if self._head_owed_s is None:
            self._head_owed_s = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        # The fields behind a body come too late for any handler.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._head_owed_s = None
        headers = dict(self.headers)
        self._left_bytes = None if b"transfer-encoding" in headers else int(headers.get(b"content-length", 0))
        if self.parser.should_upgrade() and self._should_upgrade():
            self._problem = self._websocket_problem()
            self._in_body = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        if self._left_bytes is not None:
            self._left_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()
        if self._end_owed_s is not None:
            # The body that was not wanted is over: the connection is free for the next request.
            self._end_owed_s, self._head_owed_s = None, self.loop.time()

    def on_response_complete(self) -> None:
        if self._ends:
            self._discard()
            return
        if self._in_body and not self.pipeline:
            self._end_owed_s = self.loop.time()
        super().on_response_complete()
        self._continue_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_owed_s = self.loop.time()
        self._unwritten_bytes = self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading_owed_s = None

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, with all that it holds."""
        super().handle_websocket_upgrade()
        connection = cast(WebSocketConnection, self.transport.get_protocol())
        connection.place = self._place.pop_all()
        connection.unfinished = self._limits.unfinished_message(*(self.client or ("", 0)))
        if self._checking is not None:
            self._checking.cancel()
        self._unset_keepalive_if_required()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        async def run(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            async def send_on(message: ASGISendEvent) -> None:
                if message["type"] != "http.response.start" or not self._ends_behind(cycle):
                    await send(message)
                    return
                await send({**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]})
                # uvicorn would close at once, so that a peer which is still sending would not read the reply.
                self._ends = cycle.keep_alive = True

            await app(scope, receive, send_on)

        self._running = cycle
        super()._start_asgi_task(cycle, run)

    def _ends_behind(self, cycle: RequestResponseCycle) -> bool:
        """Return whether the connection ends behind a reply that begins now, because too much of the body may still come."""
        if not self._in_body or cycle is not self.cycle:
            return False
        is_much = self._left_bytes is None or self._left_bytes > MAX_UNWANTED_BYTES
        # A peer that waits for leave to send its body may never send it.
        return is_much or cycle.waiting_for_100_continue or not cycle.keep_alive

    # Reading, a piece at a time.

    @property
    def _is_held(self) -> bool:
        return self.flow.read_paused or bool(self.pipeline)

    def _continue_reading(self) -> None:
        if self.transport.is_closing():
            self._unread.clear()
            return
        if self._unread and not self._is_held and self._parsing is None:
            self._parsing = self.loop.call_soon(self._parse_piece)
        if self._unread or self._is_held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _parse_piece(self) -> None:
        self._parsing = None
        piece = bytes(self._unread[:PIECE_BYTES])
        del self._unread[:PIECE_BYTES]
        self._parse(piece)
        if not self._discards:
            self._continue_reading()

    def _parse(self, piece: bytes) -> None:
        self._framing_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            # A peer sends nothing more before it has the answer to this.
            self._end_parsing()
        except httptools.HttpParserError:
            self._problem = self._problem or InvalidRequest("This is no valid HTTP request.")
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if self._in_head:
            self._head_bytes += len(piece)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._problem = HeadTooLarge(f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")
        elif self._in_body and self._framing_bytes > MAX_FRAMING_BYTES:
            self._problem = InvalidRequest("The chunks of the body are too small.")
        if self._problem is not None:
            self._refuse(self._problem)
        elif self._head_owed_s is None and self._end_owed_s is None and self._is_idle:
            self._head_owed_s = self.loop.time()

    def _end_parsing(self) -> None:
        """Go on after a request to change the protocol: to WebSocket if that is asked for, else not at all."""
        if not self._should_upgrade():
            # The parser takes nothing more, and the request itself is answered.
            self.cycle.keep_alive = False
        elif self._problem is None:
            self.handle_websocket_upgrade()

    @property
    def _is_idle(self) -> bool:
        return self._running is None or self._running.response_complete

    def _websocket_problem(self) -> ServeError | None:
        headers = dict(self.headers)
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            return InvalidRequest("The request for a WebSocket has a body.")
        if self.parser.get_method() != b"GET":
            return InvalidRequest("The request for a WebSocket is not a GET.")
        if headers.get(b"sec-websocket-version") != WEBSOCKET_VERSION:
            return UpgradeRequired("This server speaks version 13 of WebSocket.")
        try:
            is_key = len(b64decode(headers.get(b"sec-websocket-key", b""), validate=True)) == 16
        except ValueError:
            is_key = False
        return None if is_key else InvalidRequest("The request for a WebSocket has no valid Sec-WebSocket-Key.")

    # The end.

    def _refuse(self, error: ServeError) -> None:
        """Answer a peer that breaks the protocol, unless it has been answered, and read no more of it."""
        self._problem = None
        if (cycle := self._running) is not None and not cycle.response_complete:
            has_begun = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            if has_begun:
                self.transport.abort()
                return
            self.transport.write(_reply(error))
        elif self._end_owed_s is None:
            self.transport.write(_reply(error))
        self._discard()

    def _discard(self) -> None:
        """Throw away all that still comes. Closing at once would reset the connection before the peer reads its reply."""
        self._discards = True
        self._unread.clear()
        self._in_head = self._in_body = False
        self._head_owed_s, self._end_owed_s = None, self.loop.time()
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _check_peer(self) -> None:
        now_s = self.loop.time()
        self._checking = self.loop.call_later(CHECK_S, self._check_peer)
        if self._reading_owed_s is not None or self.transport.is_closing():
            self._check_writing(now_s)
        if not self.transport.is_reading() and hung_up(self.transport):
            self.transport.abort()
        if self._head_owed_s is not None and (self._unread or self._is_held):
            # The server is behind, not the peer.
            self._head_owed_s = now_s
        if self._end_owed_s is not None and now_s - self._end_owed_s >= LINGER_S:
            self.transport.abort()
        elif self._head_owed_s is not None and now_s - self._head_owed_s >= self._limits.header_timeout_s:
            if self._in_head:
                self._refuse(HeadTimedOut(f"The head of the request did not arrive within {self._limits.header_timeout_s:g} s."))
            else:
                self.transport.close()

    def _check_writing(self, now_s: float) -> None:
        """Cut a peer off that has read nothing for too long."""
        unwritten_bytes = self.transport.get_write_buffer_size()
        if self._reading_owed_s is None or unwritten_bytes < self._unwritten_bytes:
            self._reading_owed_s = now_s
        elif now_s - self._reading_owed_s >= self._limits.write_timeout_s:
            self.transport.abort()
        self._unwritten_bytes = unwritten_bytes


class _Flow(FlowControl):
    """uvicorn's flow control, which leaves it to the connection when to read."""

    def __init__(self, transport: asyncio.Transport, on_resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_resume = on_resume

    def resume_reading(self) -> None:
        self.read_paused = False
        self._on_resume()


def _reply(error: ServeError) -> bytes:
    """Return the whole reply to bytes that are no request, or to a connection that is one too many."""
    request_id = uuid.uuid4().hex
    body = json.dumps(openai_body(request_id, error)).encode()
    head = (
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\nx-request-id: {request_id}\r\n"
        + (f"retry-after: {error.retry_after_s}\r\n" if error.retry_after_s is not None else "")
        + "\r\n"
    )
    return STATUS_LINE[error.status] + head.encode() + body
