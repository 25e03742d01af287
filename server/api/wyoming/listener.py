"""The TCP port for Wyoming's clients, beside the HTTP server in the same event loop."""

import asyncio
import contextlib
import logging

from server.api.access.proxies import client_name
from server.api.access.shares import Shares
from server.api.context import ServerContext
from server.api.wyoming.events import MAX_LINE_BYTES
from server.api.wyoming.session import WyomingConnection

logger = logging.getLogger(__name__)

# Connections at a time, shared between clients.
MAX_CONNECTIONS = 256


class WyomingListener:
    """Serves Wyoming's clients on `port` from `start` to `close`; a port 0 becomes a free one at the start."""

    def __init__(self, context: ServerContext, port: int) -> None:
        self.port = port
        self._context = context
        self._places = Shares(MAX_CONNECTIONS)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[WyomingConnection] = set()

    @property
    def is_busy(self) -> bool:
        """Whether a client is connected."""
        return len(self._connections) > 0

    async def start(self) -> None:
        """Listen on the settings' host. Raises `OSError`."""
        host = self._context.settings.host
        self._server = await asyncio.start_server(self._accept, host, self.port, limit=MAX_LINE_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]
        logger.info("Wyoming clients are served at tcp://%s:%d.", host, self.port)

    def stop(self) -> None:
        """Take no more clients, and have those that are connected get the transcript of what they sent."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.stop()

    async def close(self) -> None:
        """Close the port and all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        client = client_name(writer.get_extra_info("peername")[0])
        try:
            if self._places.take(client):
                connection = WyomingConnection(self._context, reader, writer, client)
                self._connections.add(connection)
                try:
                    await connection.run()
                finally:
                    self._connections.discard(connection)
                    self._places.give_back(client)
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
