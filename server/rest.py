"""`POST /v1/instruct`: audio and an instruction in, text out. It never blocks the event loop."""

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.edge import Edge
from server.errors import BodyTimedOut, RequestTimedOut
from server.form import Form, read_form
from server.middleware import CLIENT_LEFT_STATUS, request_id_of
from server.protocol import ErrorReply, InstructReply, instruct_reply, parse_form
from server.request import Delta, Done, Engine, Event, Failed, InstructRequest, StageTimes
from server.settings import Settings

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

ERROR_STATUSES = {
    400: "The form, the instruction or the audio is not acceptable; `code` says which.",
    408: "The body came too slowly.",
    413: "The body, or the audio in it, is too long.",
    415: "The audio is in no format that is read, or damaged.",
    429: "Too many requests; see `Retry-After`.",
    500: "The server failed.",
    503: "The server is starting or stopping; see `Retry-After`.",
    504: "No answer within the time limit.",
}


def instruct_router(edge: Edge) -> APIRouter:
    """The native API."""
    router = APIRouter()

    @router.post(
        "/v1/instruct",
        summary="Follow an instruction about a piece of audio",
        response_model=InstructReply,
        responses={status: {"model": ErrorReply, "description": text} for status, text in ERROR_STATUSES.items()},
        openapi_extra={"requestBody": _request_body(edge.settings)},
    )
    async def instruct(request: Request) -> Response:
        started_s = time.perf_counter()
        with edge.admitted():
            try:
                form = await _read_in_time(request, edge.settings)
                work = _answer(edge, form, request_id_of(request), started_s)
                return await _unless_client_leaves(request, work, edge.settings.request_timeout_s)
            except ClientDisconnect:
                logger.info("request %s: the client left", request_id_of(request))
                # Nobody reads it; the status is for the count.
                return Response(status_code=CLIENT_LEFT_STATUS)

    return router


async def _read_in_time(request: Request, settings: Settings) -> Form:
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await read_form(request, settings.max_body_bytes)
    except TimeoutError:
        raise BodyTimedOut(f"The request body did not arrive within {settings.body_timeout_s:g} s.") from None


async def _unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result], timeout_s: float) -> Result:
    """The result of `work`, which is cancelled at the timeout and when the client leaves (`ClientDisconnect`)."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_client_leaves(request))
    try:
        finished, _ = await asyncio.wait({working, leaving}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if working in finished:
            return working.result()
        if leaving in finished:
            raise ClientDisconnect
        raise RequestTimedOut(f"There was no answer within {timeout_s:g} s.")
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _client_leaves(request: Request) -> None:
    # The body is read, so the only message that can still come is this one.
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer(edge: Edge, form: Form, request_id: str, started_s: float) -> Response:
    data, instruction, sampling = parse_form(form, edge.settings)
    decode_started_s = time.perf_counter()
    audio = await edge.decode_pool.decode(data)
    audio_decode_s = time.perf_counter() - decode_started_s

    audio_s = len(audio) / edge.engine.sample_rate_hz
    engine_request = InstructRequest(f"instruct-{uuid.uuid4().hex}", audio, instruction, sampling)
    waiter = _Waiter()
    edge.engine.submit(engine_request, waiter.deliver)
    done = await waiter.wait(edge.engine, engine_request.id)

    times = dataclasses.replace(done.times, audio_decode_s=audio_decode_s, total_s=time.perf_counter() - started_s)
    done = dataclasses.replace(done, times=times)
    edge.metrics.count_answer(done, audio_s)
    if waiter.first_text_s is not None:
        edge.metrics.time_to_first_token.observe(waiter.first_text_s - started_s)
    logger.info("request %s: %.2f s of audio, %d tokens, %s", request_id, audio_s, done.usage.output_tokens, _timing(times))
    reply = instruct_reply(engine_request.id, done, audio_s)
    return Response(reply.model_dump_json(), media_type="application/json", headers={"server-timing": _timing(times)})


class _Waiter:
    """Takes one request's events on the engine's thread and hands the terminal one to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Done | Failed] = self._loop.create_future()
        self.first_text_s: float | None = None

    def deliver(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.first_text_s = self.first_text_s or time.perf_counter()
        else:
            self._loop.call_soon_threadsafe(self._end, event)

    def _end(self, event: Done | Failed) -> None:
        if not self._ended.done():
            self._ended.set_result(event)

    async def wait(self, engine: Engine, engine_request_id: str) -> Done:
        """The answer; aborts the request where the caller is cancelled first. Raises the error of a `Failed`."""
        try:
            event = await self._ended
        except asyncio.CancelledError:
            engine.abort(engine_request_id)
            raise
        if isinstance(event, Failed):
            raise event.error
        return event


def _timing(times: StageTimes) -> str:
    """The value of a Server-Timing header."""
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in times.as_milliseconds().items())


def _request_body(settings: Settings) -> dict[str, Any]:
    """The form for the OpenAPI page; `server.form` and `server.protocol` are what checks it."""
    properties = {
        "audio": {"type": "string", "format": "binary", "description": "WAV, FLAC, OGG Vorbis, OGG Opus or MP3."},
        "instruction": {"type": "string", "minLength": 1, "maxLength": settings.max_instruction_characters},
        "max_tokens": {
            "type": "integer",
            "minimum": 1,
            "maximum": settings.max_tokens_limit,
            "default": settings.default_max_tokens,
        },
        "temperature": {"type": "number", "minimum": 0, "maximum": 2, "default": 0},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    }
    schema = {
        "type": "object",
        "required": ["audio", "instruction"],
        "additionalProperties": False,
        "properties": properties,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
