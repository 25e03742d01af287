"""`/v1/stream`: a WebSocket that takes audio as it arises and sends back what was said."""

import contextlib
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.websockets import WebSocket

from server.api.context import ServerContext
from server.api.middleware import client_of, request_id_of
from server.api.native.messages import MessageReader
from server.api.native.session import StreamSession
from server.errors import ForbiddenOrigin


def stream_router(context: ServerContext) -> APIRouter:
    """Return the route of the live API. A refusal is a plain HTTP reply in place of the WebSocket."""
    router = APIRouter()
    reader = MessageReader(context.settings, context.engine.max_audio_s)

    @router.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        check_origin(socket)
        retry_after_s = context.require_ready()
        with contextlib.ExitStack() as place:
            # Kept until the engine has the session, which then decides about it.
            place.enter_context(context.new_sockets.place(client_of(socket), retry_after_s))
            with context.metrics.live.open_sockets.track_inprogress():
                await socket.accept()
                await StreamSession(context, socket, reader, request_id_of(socket), place).run()

    return router


def check_origin(socket: WebSocket) -> None:
    """Raise `ForbiddenOrigin` for a page from another server: browsers apply no same-origin rule to WebSockets."""
    origin = socket.headers.get("origin")
    if origin is not None and _host(origin) != socket.headers.get("host", "").lower():
        raise ForbiddenOrigin("This page may not open a live session here.")


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
