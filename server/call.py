"""One request at the edge: how long it may take, and what is counted and written down of it."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from server.edge import Edge
from server.errors import RequestTimedOut
from server.protocol import InstructReply, Timestamps, instruct_reply
from server.request import Done, InstructRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """A request that goes to the engine.

    It began at `started_s` (`time.perf_counter`) and is given up at `ends_at_s` (the event loop's clock).
    """

    edge: Edge
    request_id: str
    engine_request: InstructRequest
    started_s: float
    ends_at_s: float
    audio_decode_s: float
    timestamps: Timestamps = "none"

    def reply(self, done: Done, first_text_s: float | None) -> InstructReply:
        """The reply to an answer, which is counted and logged; `first_text_s` is when its first text came."""
        total_s = time.perf_counter() - self.started_s
        times = dataclasses.replace(done.times, audio_decode_s=self.audio_decode_s, total_s=total_s)
        done = dataclasses.replace(done, times=times)
        audio_s = len(self.engine_request.audio) / self.edge.engine.sample_rate_hz
        metrics = self.edge.metrics
        metrics.count_answer(done, audio_s)
        if first_text_s is not None:
            metrics.time_to_first_token.observe(first_text_s - self.started_s)
        reply = instruct_reply(self.engine_request.id, done, audio_s, self.timestamps)
        logger.info(
            "request %s: %.2f s of audio, %d tokens, %s", self.request_id, audio_s, done.usage.output_tokens, timing(reply)
        )
        return reply


def timing(reply: InstructReply) -> str:
    """The value of a Server-Timing header."""
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in reply.times_ms.items())


@contextlib.asynccontextmanager
async def while_client_stays(request: Request, ends_at_s: float, timeout_s: float) -> AsyncIterator[None]:
    """Break the block off when the client leaves (`ClientDisconnect`), and at `ends_at_s` of the event loop (`RequestTimedOut`).

    The request's body has been read before. `timeout_s` is how long that was meant to be.
    """
    leaving = asyncio.create_task(_client_leaves(request))
    limit = asyncio.timeout_at(ends_at_s)

    def break_off(_task: object) -> None:
        # It may be over already.
        with contextlib.suppress(RuntimeError):
            limit.reschedule(0)

    try:
        async with limit:
            leaving.add_done_callback(break_off)
            yield
    except TimeoutError:
        if leaving.done():
            raise ClientDisconnect from None
        raise RequestTimedOut(f"There was no answer within {timeout_s:g} s.") from None
    finally:
        leaving.cancel()


async def _client_leaves(request: Request) -> None:
    # The body is read, so the only message that can still come is this one.
    while (await request.receive())["type"] != "http.disconnect":
        pass
