"""`POST /v1/instruct`: audio and an instruction in, text out, at once or in server-sent events. No call blocks the loop."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import Form, FormFields, read_form
from server.api.context import ServerContext
from server.api.exchange import Answer, Call, answer_request
from server.api.formats import MEDIA_TYPES
from server.api.middleware import client_of, request_id_of
from server.api.native.schema import (
    ChannelsReply,
    DeltaEvent,
    ErrorReply,
    InstructReply,
    channels_reply,
    chosen_tokens,
    done_event,
    error_event,
    instruct_reply,
    reply_body,
)
from server.api.options import InstructOptions, form_description, list_fields, parse_form, with_limits
from server.audio.raw import parse_raw_type
from server.engine.types.events import TokenLogprob
from server.engine.types.requests import InstructRequest
from server.errors import ServeError

ERROR_STATUSES = {
    400: "The form, the instruction or the audio is not acceptable; `code` says which.",
    404: "There is no model of this name.",
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
        "description": "With `stream=true`: lines `data: {...}`. Any number of `instruct.text.delta` with the next piece of text "
        "in `delta`, then one `instruct.text.done` with the fields of the whole reply, or one `error` with those of an error.",
    }
}


def instruct_router(context: ServerContext) -> APIRouter:
    """Return the route of the native API."""
    router = APIRouter()
    model = with_limits(InstructOptions, context.settings)
    fields = FormFields(tuple(model.model_fields), list_fields(model))

    @router.post(
        "/v1/instruct",
        summary="Follow an instruction about a piece of audio",
        response_model=InstructReply | ChannelsReply,
        responses={
            200: {"description": "The answer.", "content": {"text/event-stream": EVENTS_DESCRIPTION, **TEXTS_DESCRIPTION}},
            **{status: {"model": ErrorReply, "description": text} for status, text in ERROR_STATUSES.items()},
        },
        openapi_extra={"requestBody": form_description(model)},
    )
    async def instruct(request: Request) -> Response:
        async def understand(form: Form) -> Call:
            options = parse_form(model, form.texts, form.lists)
            return _call(context, request, form, options)

        read = partial(read_form, request, context.bodies, fields)
        return await answer_request(request, context, read, understand)

    return router


def _call(context: ServerContext, request: Request, form: Form, options: InstructOptions) -> Call:
    """Return the options in the engine's terms.

    Raises `InvalidRequest` for headerless samples without a rate, and `ModelNotFound`.
    """
    engine_request = InstructRequest(
        id=f"instruct-{uuid.uuid4().hex}",
        audio=np.empty(0, np.float32),
        instruction=options.instruction,
        sampling=options.sampling,
        client=client_of(request),
        priority=options.engine_priority,
        deadline_s=None if options.deadline_ms is None else options.deadline_ms / 1000,
        draft=options.draft,
        word_times=options.word_times,
        language=options.spoken.language,
        languages=options.spoken.languages,
        prompt=options.prompt,
        keywords=tuple(options.keywords),
    )
    writer = InstructWriter(options, request_id_of(request), engine_request.id)
    return Call(
        form.audio,
        engine_request,
        writer,
        options.stream,
        context.models.find(options.model),
        raw=parse_raw_type(form.audio_type),
        cut_at_pauses=options.chunking == "voice",
        channels_writer=writer if options.channels == "separate" else None,
    )


@dataclass(frozen=True)
class InstructWriter:
    """`ReplyWriter` and `ChannelsWriter` of the native API; `id` is that of the answer."""

    options: InstructOptions
    request_id: str
    id: str

    def reply(self, answer: Answer) -> Response:
        format = self.options.format
        return Response(reply_body(self._reply(answer), answer.segments, format), media_type=MEDIA_TYPES[format])

    def reply_channels(self, answers: Sequence[Answer]) -> Response:
        reply = channels_reply(self.id, [self._reply(answer) for answer in answers])
        return Response(reply.model_dump_json(exclude_none=True), media_type=MEDIA_TYPES["json"])

    def first_events(self) -> Iterable[str]:
        return ()

    def text_event(self, text: str, logprobs: Sequence[TokenLogprob]) -> str:
        return DeltaEvent(delta=text, logprobs=chosen_tokens(logprobs) or None).model_dump_json(exclude_none=True)

    def last_events(self, answer: Answer) -> Iterable[str]:
        yield done_event(self._reply(answer)).model_dump_json(exclude_none=True)

    def error_event(self, error: ServeError) -> str:
        # An error's empty fields belong to its shape.
        return error_event(self.request_id, error).model_dump_json()

    def _reply(self, answer: Answer) -> InstructReply:
        done, timestamps = answer.done, self.options.timestamps
        return instruct_reply(
            done.request_id,
            done,
            answer.audio_s,
            None if timestamps == "none" else answer.segments,
            answer.basis,
            answer.sections,
            answer.warnings,
            with_words=timestamps == "words",
        )
