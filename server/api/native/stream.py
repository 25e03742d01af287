"""`/v1/stream`: a WebSocket that audio goes into as it arises, and what is said comes out of."""

from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.websockets import WebSocket

from server.api.context import ServerContext
from server.api.middleware import request_id_of
from server.api.native.stream_requests import MessageReader
from server.api.native.stream_session import StreamSession
from server.errors import ForbiddenOrigin


def stream_router(context: ServerContext) -> APIRouter:
    """The live API. Who is refused gets a plain HTTP reply in place of the WebSocket."""
    router = APIRouter()
    reader = MessageReader(context.settings, context.engine.max_audio_s)

    @router.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        check_origin(socket)
        with context.session_admitted():
            await socket.accept()
            await StreamSession(context, socket, reader, request_id_of(socket)).run()

    return router


def check_origin(socket: WebSocket) -> None:
    """Raises `ForbiddenOrigin` for a page that another server gave the browser: WebSockets know no other protection from it."""
    origin = socket.headers.get("origin")
    if origin is not None and _host(origin) != socket.headers.get("host", "").lower():
        raise ForbiddenOrigin("This page may not open a live session here.")


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
