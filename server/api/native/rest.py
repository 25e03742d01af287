"""`POST /v1/instruct`: audio and an instruction in, text out, at once or in server-sent events. No call blocks the loop."""

import asyncio
import contextlib
import dataclasses
import logging
import time
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.api.context import ServerContext
from server.api.disconnect import TimeLimit, while_client_stays
from server.api.formats import MEDIA_TYPES
from server.api.middleware import CLIENT_LEFT_STATUS, client_of, request_id_of
from server.api.multipart import Form, read_form
from server.api.native.schema import (
    DeltaEvent,
    DoneEvent,
    ErrorEvent,
    ErrorReply,
    InstructReply,
    chosen_tokens,
    done_event,
    error_event,
    instruct_reply,
    reply_body,
)
from server.api.options import InstructOptions, form_description, parse_form, with_limits
from server.engine.types.events import Done, Failed
from server.engine.types.requests import InstructRequest
from server.errors import BodyTimedOut, ServeError
from server.jobs.events import EventQueue, ResultFuture
from server.jobs.job import Job, build_job
from server.jobs.long_audio import LongAudioJob
from server.observability.metrics import StreamOutcome

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
EVENTS_DESCRIPTION: dict[str, Any] = {
    "schema": {
        "type": "string",
        "description": "With `stream=true`: lines `data: {...}`. Any number of `instruct.text.delta` with the next piece of text "
        "in `delta`, then one `instruct.text.done` with the fields of the whole reply, or one `error` with those of an error.",
    }
}

EVENT_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
# A line that clients skip; it keeps proxies from closing a silent connection.
HEARTBEAT = b": still working\n\n"
# For the last event, if the client did not even read the events before.
ERROR_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class InstructContext:
    """One request on its way through the engine; `started_s` is by `time.perf_counter`."""

    context: ServerContext
    request_id: str
    options: InstructOptions
    job: Job
    limit: TimeLimit
    started_s: float

    def reply_to(self, done: Done, first_text_s: float | None) -> InstructReply:
        """Return the reply for an answer, and count and log the answer; `first_text_s` is when its first text came."""
        job, total_s = self.job, time.perf_counter() - self.started_s
        times = dataclasses.replace(done.times, audio_decode_s=job.audio_decode_s, total_s=total_s)
        done = dataclasses.replace(done, times=times)
        metrics = self.context.metrics
        metrics.count_answer(done, job.audio_s)
        if first_text_s is not None:
            metrics.time_to_first_token.observe(first_text_s - self.started_s)
        reply = instruct_reply(job.id, done, job.audio_s, self.options.timestamps, job.basis, job.sections)
        tokens = done.usage.output_tokens
        logger.info("request %s: %.2f s of audio, %d tokens, %s", self.request_id, job.audio_s, tokens, server_timing(reply))
        return reply


def instruct_router(context: ServerContext) -> APIRouter:
    """Return the route of the native API."""
    router = APIRouter()
    model = with_limits(InstructOptions, context.settings)

    @router.post(
        "/v1/instruct",
        summary="Follow an instruction about a piece of audio",
        response_model=InstructReply,
        responses={
            200: {"description": "The answer.", "content": {"text/event-stream": EVENTS_DESCRIPTION, **TEXTS_DESCRIPTION}},
            **{status: {"model": ErrorReply, "description": text} for status, text in ERROR_STATUSES.items()},
        },
        openapi_extra={"requestBody": form_description(model)},
    )
    async def instruct(request: Request) -> Response:
        started_s = time.perf_counter()
        with contextlib.ExitStack() as held:
            retry_after_s = context.require_ready()
            held.enter_context(context.metrics.in_flight.track_inprogress())
            # The request keeps its place until the engine has it, which then decides about it.
            place = held.enter_context(contextlib.ExitStack())
            place.enter_context(context.uploads.place(client_of(request), retry_after_s))
            try:
                form = await _read_form_in_time(request, context, model)
                limit = TimeLimit(context.settings.request_timeout_s)
                async with while_client_stays(request, limit):
                    options = parse_form(model, form.texts)
                    job = await _build_job(context, request, form.audio, options, limit, started_s)
                    held.callback(job.close)
                    # An uploaded file may be large, and the answer take long.
                    del form
                    place.close()
                    instructed = InstructContext(context, request_id_of(request), options, job, limit, started_s)
                    if not options.stream:
                        return await _answer(instructed)
                    stream = EventStream(instructed)
                    await stream.start()
                # A streamed reply is not over when this function is.
                stream.hold(held.pop_all())
                return stream
            except ClientDisconnect:
                logger.info("request %s: the client left", request_id_of(request))
                # The client has left; the status is for the metrics.
                return Response(status_code=CLIENT_LEFT_STATUS)

    return router


async def _read_form_in_time(request: Request, context: ServerContext, model: type[InstructOptions]) -> Form:
    settings = context.settings
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await read_form(request, settings.max_body_bytes, model.model_fields)
    except TimeoutError:
        raise BodyTimedOut(f"The request body did not arrive within {settings.body_timeout_s:g} s.") from None


async def _build_job(
    context: ServerContext, request: Request, audio: bytes, options: InstructOptions, limit: TimeLimit, started_s: float
) -> Job:
    """Return the work that the options ask for. Raises the error of a constraint or of the audio."""
    sampling = options.sampling
    if sampling.constraint is not None:
        await context.grammar_sandbox.check(sampling.constraint, client_of(request))
    passed_s = time.perf_counter() - started_s
    engine_request = InstructRequest(
        id=f"instruct-{uuid.uuid4().hex}",
        audio=np.empty(0, np.float32),
        instruction=options.instruction,
        sampling=sampling,
        client=client_of(request),
        priority=options.engine_priority,
        deadline_s=None if options.deadline_ms is None else options.deadline_ms / 1000 - passed_s,
        draft=options.draft,
        word_times=options.word_times,
        language=options.language,
        prompt=options.prompt,
        keywords=tuple(options.keywords),
    )
    job = await build_job(
        context.engine,
        context.decode_pool,
        audio,
        engine_request,
        cut_at_pauses=options.chunking == "voice",
        on_progress=limit.extend,
    )
    # The engine knows no deadline of a live session.
    if isinstance(job, LongAudioJob) and job.deadline_s is not None:
        limit.set_deadline(job.deadline_s)
    return job


async def _answer(instructed: InstructContext) -> Response:
    """Return the whole reply at once."""
    result, job, format = ResultFuture(), instructed.job, instructed.options.format
    job.start(result.put)
    try:
        done = await result.wait()
    except asyncio.CancelledError:
        job.abort()
        raise
    reply = instructed.reply_to(done, result.first_text_s)
    body = reply_body(reply, done.words or (), format)
    return Response(body, media_type=MEDIA_TYPES[format], headers={"server-timing": server_timing(reply)})


class EventStream(Response):
    """The reply to one streamed request: call `start`, then `hold`, then the response itself.

    No byte is sent before the engine's first event, so a request that is refused or fails at once has an error's status. A client
    that leaves, or does not read within the time limit, ends the engine's work. A client that reads slowly gets the pieces of
    text that have piled up as one delta.
    """

    def __init__(self, instructed: InstructContext) -> None:
        super().__init__(headers=EVENT_HEADERS, media_type="text/event-stream")
        # The length is not known.
        del self.headers["content-length"]
        self._instructed = instructed
        self._events = EventQueue()
        self._held = contextlib.ExitStack()

    async def start(self) -> None:
        """Start the job and wait for its first event. Raises the `ServeError` of a request that never gets one."""
        job = self._instructed.job
        job.start(self._events.put)
        try:
            await self._events.wait()
        except asyncio.CancelledError:
            job.abort()
            raise
        self._events.raise_failure()

    def hold(self, held: contextlib.ExitStack) -> None:
        """Close `held` when the reply is over."""
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        instructed = self._instructed
        with self._held:
            outcome: StreamOutcome = "broken_off"
            try:
                async with while_client_stays(Request(scope, receive), instructed.limit):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    await self._send_answer(send)
                outcome = "done"
            except ClientDisconnect:
                logger.info("request %s: the client left", instructed.request_id)
            except ServeError as error:
                outcome = "error"
                logger.warning("request %s: %s", instructed.request_id, error.message)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ERROR_TIMEOUT_S):
                        await send(event_message(error_event(instructed.request_id, error), more=False))
            finally:
                if not self._events.ended:
                    instructed.job.abort()
                instructed.context.metrics.count_stream(outcome, self._events.arrivals_s)

    async def _send_answer(self, send: Send) -> None:
        """Send events up to the last one. Raises the error of a request that fails."""
        heartbeat_s = self._instructed.context.settings.stream_heartbeat_s
        while True:
            text, logprobs, terminal = self._events.take_all()
            if text or logprobs:
                event = DeltaEvent(delta=text, logprobs=chosen_tokens(logprobs) or None)
                await send(event_message(event, more=True))
            if isinstance(terminal, Failed):
                raise terminal.error
            if terminal is not None:
                reply = self._instructed.reply_to(terminal, self._events.first_text_s)
                await send(event_message(done_event(reply), more=False))
                return
            try:
                async with asyncio.timeout(heartbeat_s):
                    await self._events.wait()
            except TimeoutError:
                await send({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})


def event_message(event: DeltaEvent | DoneEvent | ErrorEvent, *, more: bool) -> Message:
    """Return the part of the body for an event; `more` says whether others follow."""
    # An error's empty fields belong to its shape.
    content = event.model_dump_json(exclude_none=not isinstance(event, ErrorEvent))
    return {"type": "http.response.body", "body": f"data: {content}\n\n".encode(), "more_body": more}


def server_timing(reply: InstructReply) -> str:
    """Return the value of a Server-Timing header."""
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in reply.times_ms.items())
