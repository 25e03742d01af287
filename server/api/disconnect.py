"""The two things that end a request early: a client that disconnects, and a time limit."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from server.errors import RequestTimedOut


class TimeLimit:
    """The end of a request: `timeout_s` after its last progress, and its deadline. Belongs to the running event loop."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._deadline_at_s = float("inf")
        self._ends_at_s = self._loop.time() + timeout_s
        self._deadline_changed: asyncio.Future[None] = self._loop.create_future()

    async def wait(self) -> None:
        """Sleep until the limit is reached, which may be moved meanwhile."""
        while (left_s := min(self._ends_at_s, self._deadline_at_s) - self._loop.time()) > 0:
            await asyncio.wait([self._deadline_changed], timeout=left_s)

    def extend(self) -> None:
        """Count the timeout from now on: the request has made progress."""
        self._ends_at_s = self._loop.time() + self._timeout_s

    def set_deadline(self, deadline_s: float) -> None:
        """End the request in `deadline_s` seconds, whatever progress it makes."""
        self._deadline_at_s = self._loop.time() + deadline_s
        self._deadline_changed.set_result(None)
        self._deadline_changed = self._loop.create_future()

    def error(self) -> RequestTimedOut:
        """Return the error for the client at the end."""
        if self._deadline_at_s < self._ends_at_s:
            return RequestTimedOut("The request's deadline has passed.")
        return RequestTimedOut(f"There was no answer within {self._timeout_s:g} s.")


@contextlib.asynccontextmanager
async def while_client_stays(request: Request, limit: TimeLimit) -> AsyncIterator[None]:
    """Cancel the block when the client leaves (raises `ClientDisconnect`) or the limit is reached (raises `RequestTimedOut`).

    The request's body must have been read before.
    """
    leaving = asyncio.create_task(_wait_for_disconnect(request))
    ending = asyncio.create_task(limit.wait())
    block = asyncio.timeout(None)

    def end_block(_task: object) -> None:
        # The block may have ended already.
        with contextlib.suppress(RuntimeError):
            block.reschedule(0)

    try:
        async with block:
            leaving.add_done_callback(end_block)
            ending.add_done_callback(end_block)
            yield
    except TimeoutError:
        if leaving.done():
            raise ClientDisconnect from None
        raise limit.error() from None
    finally:
        leaving.cancel()
        ending.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    # The body is read, so the only message that can still come is this one.
    while (await request.receive())["type"] != "http.disconnect":
        pass
