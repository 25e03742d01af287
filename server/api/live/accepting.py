"""The beginning of every live session: the checks at the door, in place of which a refusal is a plain HTTP reply."""

import contextlib
from collections.abc import Callable

from starlette.websockets import WebSocket

from server.api.context import ServerContext
from server.api.live.session import Dialect, SocketSession
from server.api.middleware import client_of
from server.api.websocket import Connection


async def serve_socket(
    context: ServerContext,
    socket: WebSocket,
    make_dialect: Callable[[SocketSession], Dialect],
    *,
    max_message_bytes: int,
    subprotocols: tuple[str, ...] = (),
) -> None:
    """Accept a WebSocket and serve it in a dialect. Of the `subprotocols`, the first that the client offers is agreed on.

    Raises a `ServeError`, before the WebSocket is accepted, if it is not.
    """
    retry_after_s = context.require_ready()
    with contextlib.ExitStack() as door:
        # Kept until the engine has the session, which then decides about it.
        door.enter_context(context.new_sockets.place(client_of(socket), retry_after_s))
        with context.metrics.live.open_sockets.track_inprogress():
            connection: Connection = socket.state.connection
            connection.max_message_bytes = max_message_bytes
            offered = socket.scope.get("subprotocols", [])
            await socket.accept(next((name for name in subprotocols if name in offered), None))
            session = SocketSession(context, socket, door)
            await session.run(make_dialect(session))
