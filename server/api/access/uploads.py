"""Bodies on their way: each has to get on, and together they may hold so much memory, shared between clients."""

import asyncio

from starlette.types import Message, Receive

from server.api.access.shares import Shares
from server.errors import BodyTimedOut, Overloaded

# A body gets on if so much of it comes within the timeout, however slow the link is.
LEAST_PROGRESS_BYTES = 4096
RETRY_AFTER_S = 1


class Upload:
    """The body of one request, in place of its `receive`. Its memory counts until the body has ended, or until `close`.

    Raises `BodyTimedOut` if the body does not get on while the handler waits for it, and `Overloaded` if unfinished bodies hold
    too much memory.
    """

    def __init__(self, receive: Receive, client: str, memory: Shares, timeout_s: float) -> None:
        self._receive = receive
        self._client = client
        self._memory = memory
        self._timeout_s = timeout_s
        self._held_bytes = 0
        self._waited_s = 0.0
        self._progress_bytes = 0
        self._ended = False

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()
        message = await self._next_message()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.close()
            return message
        count = len(message.get("body", b""))
        if not self._memory.take(self._client, count):
            raise Overloaded("Too much is being uploaded; try again soon.", retry_after_s=RETRY_AFTER_S)
        self._held_bytes += count
        self._progress_bytes += count
        if self._progress_bytes >= LEAST_PROGRESS_BYTES:
            self._progress_bytes, self._waited_s = 0, 0.0
        return message

    def close(self) -> None:
        """Count the body no longer."""
        self._ended = True
        if self._held_bytes:
            self._memory.give_back(self._client, self._held_bytes)
            self._held_bytes = 0

    async def _next_message(self) -> Message:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            async with asyncio.timeout(max(0.0, self._timeout_s - self._waited_s)):
                message = await self._receive()
        except TimeoutError:
            raise BodyTimedOut(f"The request body did not get on for {self._timeout_s:g} s.") from None
        self._waited_s += loop.time() - started_s
        return message
