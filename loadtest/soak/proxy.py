"""A TCP proxy between the users and the server, whose network can be made slow, or broken."""

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Self
from urllib.parse import urlsplit

PIECE_BYTES = 16_384
SLOW_PIECE_BYTES = 512
START_TIMEOUT_S = 30.0
RESET = struct.pack("ii", 1, 0)
"""The value of `SO_LINGER` by which closing a socket resets its connection."""


class Proxy:
    """A context manager: passes on what comes to `url`, on a thread of its own, until it ends.

    `bytes_per_s` is the speed of each connection in each direction, without a limit where it is None. It may be set at any time.
    """

    def __init__(self, target_url: str) -> None:
        self.bytes_per_s: float | None = None
        target = urlsplit(target_url)
        self._host, self._port = str(target.hostname), int(target.port or 80)
        self._writers: set[asyncio.StreamWriter] = set()
        self._listening = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def reset_all(self) -> None:
        """Reset every connection that is open, on both sides."""
        self._loop.call_soon_threadsafe(self._reset_all)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listening.set()
        async with server:
            await self._stopping.wait()
            self._reset_all()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
            writers = {writer, server_writer}
            self._writers |= writers
            try:
                await asyncio.gather(self._pass_on(reader, server_writer), self._pass_on(server_reader, writer))
            finally:
                self._writers -= writers
                for each in writers:
                    each.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on one direction to its end."""
        while piece := await reader.read(PIECE_BYTES if self.bytes_per_s is None else SLOW_PIECE_BYTES):
            if (speed := self.bytes_per_s) is not None:
                await asyncio.sleep(len(piece) / speed)
            writer.write(piece)
            await writer.drain()
        writer.write_eof()

    def _reset_all(self) -> None:
        for each in self._writers:
            each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            each.transport.abort()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._listening.wait(START_TIMEOUT_S):
            raise TimeoutError("the proxy did not start")
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(START_TIMEOUT_S)
