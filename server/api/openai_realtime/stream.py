"""`/v1/realtime`: a WebSocket for clients of OpenAI's Realtime API, and for those of vLLM, told apart by their first event."""

import contextlib
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.websockets import WebSocket

from server.api.context import ServerContext
from server.api.live.accepting import serve_socket
from server.api.live.outbox import CloseReason
from server.api.live.session import Dialect, SocketSession
from server.api.openai_realtime.schema import read_object
from server.api.openai_realtime.session import LARGE_BYTES, MAX_MESSAGE_BYTES, RealtimeDialect
from server.api.openai_realtime.vllm import VllmDialect, speaks_vllm
from server.engine.types.events import LiveEvent
from server.errors import InvalidRequest, ServeError

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
            lambda session: FirstEventDialect(session, RealtimeDialect(session, model=name, beta=beta)),
            max_message_bytes=MAX_MESSAGE_BYTES,
            model=model,
            subprotocols=(SUBPROTOCOL,),
        )

    return router


class FirstEventDialect:
    """`Dialect` that is OpenAI's until the client's first event shows that it speaks vLLM's."""

    def __init__(self, session: SocketSession, dialect: Dialect) -> None:
        self._session = session
        self._dialect = dialect
        self._is_first = True

    @property
    def idle_timeout_s(self) -> float | None:
        return self._dialect.idle_timeout_s

    @property
    def silence_s(self) -> float | None:
        return self._dialect.silence_s

    async def take_message(self, message: str | bytes) -> None:
        if self._is_first and isinstance(message, str) and len(message) <= LARGE_BYTES:
            # A message that cannot be read is for the dialect to refuse.
            with contextlib.suppress(InvalidRequest):
                if speaks_vllm(read_object(message)):
                    self._dialect = VllmDialect(self._session)
        self._is_first = False
        await self._dialect.take_message(message)

    def frames_of(self, event: LiveEvent) -> Sequence[str]:
        return self._dialect.frames_of(event)

    def closing_frames(self, reason: CloseReason) -> Sequence[str]:
        return self._dialect.closing_frames(reason)

    def survives(self, error: ServeError) -> bool:
        return self._dialect.survives(error)
