"""One request at the context: how long it may take, and what is counted and written down of it."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from server.api.context import ServerContext
from server.api.native.schema import InstructReply, Timestamps, instruct_reply
from server.engine.types.events import Done
from server.errors import RequestTimedOut
from server.jobs.job import Job

logger = logging.getLogger(__name__)


class TimeLimit:
    """When a request is given up: `timeout_s` after it last got on, and at its deadline. Belongs to the running event loop."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._deadline_at_s = float("inf")
        self._ends_at_s = self._loop.time() + timeout_s
        self._moved_back: asyncio.Future[None] = self._loop.create_future()

    async def reached(self) -> None:
        """Return then, wherever it has moved meanwhile."""
        while (left_s := min(self._ends_at_s, self._deadline_at_s) - self._loop.time()) > 0:
            await asyncio.wait([self._moved_back], timeout=left_s)

    def extend(self) -> None:
        """It has got on."""
        self._ends_at_s = self._loop.time() + self._timeout_s

    def set_deadline(self, deadline_s: float) -> None:
        """In so many seconds it ends, whether it gets on or not."""
        self._deadline_at_s = self._loop.time() + deadline_s
        self._moved_back.set_result(None)
        self._moved_back = self._loop.create_future()

    def error(self) -> RequestTimedOut:
        """What the client is told at the end."""
        if self._deadline_at_s < self._ends_at_s:
            return RequestTimedOut("The request's deadline has passed.")
        return RequestTimedOut(f"There was no answer within {self._timeout_s:g} s.")


@dataclass(frozen=True)
class Call:
    """A request that goes to the engine. It began at `started_s` (`time.perf_counter`)."""

    context: ServerContext
    request_id: str
    work: Job
    started_s: float
    limit: TimeLimit
    timestamps: Timestamps = "none"

    def reply(self, done: Done, first_text_s: float | None) -> InstructReply:
        """The reply to an answer, which is counted and logged; `first_text_s` is when its first text came."""
        total_s = time.perf_counter() - self.started_s
        work = self.work
        done = dataclasses.replace(
            done, times=dataclasses.replace(done.times, audio_decode_s=work.audio_decode_s, total_s=total_s)
        )
        metrics = self.context.metrics
        metrics.count_answer(done, work.audio_s)
        if first_text_s is not None:
            metrics.time_to_first_token.observe(first_text_s - self.started_s)
        reply = instruct_reply(work.id, done, work.audio_s, self.timestamps, work.basis, work.sections)
        logger.info(
            "request %s: %.2f s of audio, %d tokens, %s", self.request_id, work.audio_s, done.usage.output_tokens, timing(reply)
        )
        return reply


def timing(reply: InstructReply) -> str:
    """The value of a Server-Timing header."""
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in reply.times_ms.items())


@contextlib.asynccontextmanager
async def while_client_stays(request: Request, limit: TimeLimit) -> AsyncIterator[None]:
    """Break the block off when the client leaves (`ClientDisconnect`), and when the limit is reached (`RequestTimedOut`).

    The request's body has been read before.
    """
    leaving = asyncio.create_task(_client_leaves(request))
    ending = asyncio.create_task(limit.reached())
    block = asyncio.timeout(None)

    def break_off(_task: object) -> None:
        # It may be over already.
        with contextlib.suppress(RuntimeError):
            block.reschedule(0)

    try:
        async with block:
            leaving.add_done_callback(break_off)
            ending.add_done_callback(break_off)
            yield
    except TimeoutError:
        if leaving.done():
            raise ClientDisconnect from None
        raise limit.error() from None
    finally:
        leaving.cancel()
        ending.cancel()


async def _client_leaves(request: Request) -> None:
    # The body is read, so the only message that can still come is this one.
    while (await request.receive())["type"] != "http.disconnect":
        pass
