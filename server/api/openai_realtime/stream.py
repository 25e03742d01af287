"""`/v1/realtime`: a WebSocket for clients of OpenAI's Realtime API, and for those of vLLM, told apart by their first event."""

import contextlib

from fastapi import APIRouter
from starlette.websockets import WebSocket

from server.api.body import LARGE_CONTENT
from server.api.context import ServerContext
from server.api.live.accepting import serve_socket
from server.api.openai_realtime.schema import read_object
from server.api.openai_realtime.session import MAX_MESSAGE_BYTES, RealtimeDialect
from server.api.openai_realtime.vllm import VllmDialect, speaks_vllm
from server.errors import InvalidRequest

SUBPROTOCOL = "realtime"


def realtime_router(context: ServerContext) -> APIRouter:
    """Return the route. A refusal is a plain HTTP reply in place of the WebSocket."""
    router = APIRouter()

    @router.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        """Live audio as in OpenAI's Realtime API, or in vLLM's."""
        name = socket.query_params.get("model", context.models.default.name)
        model = context.models.find(name)
        beta = socket.headers.get("openai-beta", "") == "realtime=v1"
        await serve_socket(
            context,
            socket,
            lambda session: FirstEventDialect(session, model=name, beta=beta),
            max_message_bytes=MAX_MESSAGE_BYTES,
            model=model,
            subprotocols=(SUBPROTOCOL,),
        )

    return router


class FirstEventDialect(RealtimeDialect):
    """`RealtimeDialect` whose session changes to vLLM's if the client's first event shows that it speaks that."""

    _is_first = True

    async def take_message(self, message: str | bytes) -> None:
        if self._is_first and isinstance(message, str) and len(message) <= LARGE_CONTENT:
            # A message that cannot be read is for the dialect to refuse.
            with contextlib.suppress(InvalidRequest):
                if speaks_vllm(read_object(message)):
                    self._session.dialect = VllmDialect(self._session)
                    await self._session.dialect.take_message(message)
                    return
        self._is_first = False
        await super().take_message(message)
