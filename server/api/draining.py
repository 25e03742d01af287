"""A server that stops without breaking a promise: new work is refused, work that was taken is finished or told that it is not."""

import asyncio
import socket
import time

import uvicorn
from uvicorn.config import Config

from server.api.context import ServerContext
from server.api.websocket import WebSocketConnection

# Time for the last replies and closing frames, once the engine has given up what was left.
FAREWELL_S = 2.0
POLL_S = 0.02


class DrainingServer(uvicorn.Server):
    """uvicorn's server, with a way of its own from the signal to the end.

    At the signal `/ready` and all new work get 503, on new connections too, while live sessions are told to end. Work gets
    `drain_timeout_s`; the rest then fails with `not_ready`, and its clients are told. Then no connection is accepted any more.
    """

    def __init__(self, config: Config, context: ServerContext) -> None:
        super().__init__(config)
        self._context = context

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._context.stopping = True
        for connection in list(self.server_state.connections):
            if isinstance(connection, WebSocketConnection):
                connection.shutdown()
        for listener in self._context.listeners:
            listener.stop()
        await self._wait_for_work(self._context.settings.drain_timeout_s)
        # From here on the engines take nothing, and everything in them fails.
        await self._context.models.drain(0)
        await self._wait_for_work(FAREWELL_S)
        await super().shutdown(sockets)

    @property
    def _has_work(self) -> bool:
        return bool(self.server_state.tasks) or any(listener.is_busy for listener in self._context.listeners)

    async def _wait_for_work(self, timeout_s: float) -> None:
        """Return once no request and no session is left, after the timeout, or at a second signal."""
        ends_s = time.monotonic() + timeout_s
        while self._has_work and not self.force_exit and time.monotonic() < ends_s:
            await asyncio.sleep(POLL_S)
