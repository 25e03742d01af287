"""The beginning of every live session: checks, of which a refusal is a plain HTTP reply, and then the WebSocket."""

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from starlette.websockets import WebSocket

from server.api.context import ServerContext
from server.api.live.session import Dialect, SocketSession
from server.api.middleware import client_of
from server.api.websocket import Connection
from server.registry.registry import ServedModel


async def serve_socket(
    context: ServerContext,
    socket: WebSocket,
    make_dialect: Callable[[SocketSession], Dialect],
    *,
    max_message_bytes: int,
    model: ServedModel | None = None,
    subprotocols: tuple[str, ...] = (),
    headers: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Accept a WebSocket and serve it in a dialect, by `model` until the dialect chooses another.

    Of the `subprotocols`, the first that the client offers is agreed on.
    Raises a `ServeError`, before the WebSocket is accepted, if it is not.
    """
    retry_after_s = context.models.require_ready()
    with contextlib.ExitStack() as door:
        # Kept until the engine has the session, which then decides about it.
        door.enter_context(context.new_sockets.place(client_of(socket), retry_after_s))
        with context.metrics.live.open_sockets.track_inprogress():
            connection: Connection = socket.state.connection
            connection.max_message_bytes = max_message_bytes
            offered = socket.scope.get("subprotocols", [])
            agreed = next((name for name in subprotocols if name in offered), None)
            await socket.accept(agreed, [(name.encode(), value.encode()) for name, value in headers.items()])
            session = SocketSession(context, socket, door)
            if model is not None:
                session.choose_model(model)
            await session.run(make_dialect(session))
