"""`POST /v1/instruct`: audio and an instruction in, text out. It never blocks the event loop."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.api.call import Call, TimeLimit, timing, while_client_stays
from server.api.context import ServerContext
from server.api.instruct_form import body_description, check_form, text_fields
from server.api.middleware import CLIENT_LEFT_STATUS, request_id_of
from server.api.multipart import Form, read_form
from server.api.native.schema import ErrorReply, InstructReply
from server.api.native.sse import EVENTS_DESCRIPTION, EventStream
from server.api.reply_format import MEDIA_TYPES, ReplyFormat, written
from server.errors import BodyTimedOut
from server.jobs.events import ResultFuture
from server.jobs.preparation import prepare

logger = logging.getLogger(__name__)

ERROR_STATUSES = {
    400: "The form, the instruction or the audio is not acceptable; `code` says which.",
    408: "The body came too slowly.",
    413: "The body, or the audio in it, is too long.",
    415: "The audio is in no format that is read, or damaged.",
    429: "Too many requests, or the deadline cannot be met; see `Retry-After`.",
    500: "The server failed.",
    503: "The server is starting or stopping; see `Retry-After`.",
    504: "No answer within the time limit.",
}

TEXTS_DESCRIPTION = {media: {"schema": {"type": "string"}} for format, media in MEDIA_TYPES.items() if format != "json"}


def instruct_router(context: ServerContext) -> APIRouter:
    """The native API."""
    router = APIRouter()
    fields = text_fields(context.settings)

    @router.post(
        "/v1/instruct",
        summary="Follow an instruction about a piece of audio",
        response_model=InstructReply,
        responses={
            200: {"description": "The answer.", "content": {"text/event-stream": EVENTS_DESCRIPTION, **TEXTS_DESCRIPTION}},
            **{status: {"model": ErrorReply, "description": text} for status, text in ERROR_STATUSES.items()},
        },
        openapi_extra={"requestBody": body_description(fields)},
    )
    async def instruct(request: Request) -> Response:
        started_s = time.perf_counter()
        # What is held here goes along with a streamed reply, which is not over when this function is.
        with contextlib.ExitStack() as held:
            held.enter_context(context.admitted())
            try:
                multipart = await _read_in_time(request, context, fields)
                limit = TimeLimit(context.settings.request_timeout_s)
                async with while_client_stays(request, limit):
                    form = check_form(multipart, fields)
                    # Whose request it is, as far as a server without API keys can tell.
                    client = request.client.host if request.client else ""
                    work = await prepare(context, form, client, started_s, limit, held)
                    call = Call(context, request_id_of(request), work, started_s, limit, form.timestamps)
                    if not form.stream:
                        return await _answer(call, form.format)
                    stream = EventStream(call)
                    await stream.begin()
                    stream.hold(held.pop_all())
                    return stream
            except ClientDisconnect:
                logger.info("request %s: the client left", request_id_of(request))
                # Nobody reads it; the status is for the count.
                return Response(status_code=CLIENT_LEFT_STATUS)

    return router


async def _read_in_time(request: Request, context: ServerContext, fields: Collection[str]) -> Form:
    settings = context.settings
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await read_form(request, settings.max_body_bytes, fields)
    except TimeoutError:
        raise BodyTimedOut(f"The request body did not arrive within {settings.body_timeout_s:g} s.") from None


async def _answer(call: Call, format: ReplyFormat) -> Response:
    """The whole reply at once."""
    waiter = ResultFuture()
    call.work.start(waiter.deliver)
    try:
        done = await waiter.wait()
    except asyncio.CancelledError:
        call.work.abort()
        raise
    reply = call.reply(done, waiter.first_text_s)
    body = written(reply, done.words or (), format)
    return Response(body, media_type=MEDIA_TYPES[format], headers={"server-timing": timing(reply)})
