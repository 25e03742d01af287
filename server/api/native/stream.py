"""`/v1/stream`: a WebSocket that takes audio as it arises and sends back what was said."""

from fastapi import APIRouter
from starlette.websockets import WebSocket

from server.api.context import ServerContext
from server.api.live.accepting import serve_socket
from server.api.native.messages import MAX_FRAME_BYTES, MessageReader
from server.api.native.session import NativeDialect


def stream_router(context: ServerContext) -> APIRouter:
    """Return the route of the live API. A refusal is a plain HTTP reply in place of the WebSocket."""
    router = APIRouter()
    reader = MessageReader(context.settings, lambda name: context.models.find(name).max_audio_s)

    @router.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        """Live audio in our own messages."""
        await serve_socket(context, socket, lambda session: NativeDialect(session, reader), max_message_bytes=MAX_FRAME_BYTES)

    return router
