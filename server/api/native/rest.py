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

from server.api.body import PLAIN_NAME, Form, FormFields, read_form
from server.api.call import Answer, Call, StreamWriter
from server.api.context import ServerContext
from server.api.exchange import answer_request
from server.api.formats import MEDIA_TYPES, ReplyFormat, srt, vtt
from server.api.middleware import client_of, request_id_of
from server.api.native.schema import (
    ChannelsReply,
    ChosenToken,
    DeltaEvent,
    DoneEvent,
    ErrorEvent,
    ErrorReply,
    InstructReply,
    LikelyToken,
    SegmentReply,
    SpeculationReply,
    UsageReply,
    WordReply,
)
from server.api.options import InstructOptions, Timestamps, form_description, list_fields, parse_form, with_limits
from server.audio.raw import parse_raw_type
from server.engine.types.events import Segment, TokenLogprob, Word
from server.engine.types.requests import InstructRequest
from server.errors import ServeError, UnknownField

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
        async def make_call(form: Form) -> Call:
            for name in request.query_params:
                param = name if PLAIN_NAME.fullmatch(name) else None
                raise UnknownField("The options are fields of the form; the address has none.", param=param)
            options = parse_form(model, form.texts, form.lists)
            return _call(context, request, form, options)

        read = partial(read_form, request, context.bodies, fields)
        return await answer_request(request, context, read, make_call)

    return router


def _call(context: ServerContext, request: Request, form: Form, options: InstructOptions) -> Call:
    """Return the options in the engine's terms.

    Raises `InvalidRequest` for headerless samples without a rate, and `ModelNotFound`.
    """
    engine_request = InstructRequest(
        id=f"instruct-{uuid.uuid4().hex}",
        audio=np.empty(0, np.float32),
        task=options.task(options.word_times),
        client=client_of(request),
        priority=options.engine_priority,
        deadline_s=None if options.deadline_ms is None else options.deadline_ms / 1000,
    )
    writer = InstructWriter(options, request_id_of(request), engine_request.id)
    return Call(
        form.audio,
        engine_request,
        writer,
        stream_writer=writer if options.stream else None,
        channels_writer=writer if options.channels == "separate" else None,
        model=context.models.find(options.model),
        raw=parse_raw_type(form.audio_type),
        cut_at_pauses=options.chunking == "voice",
        params={"language": "languages"} if options.language is None else {},
    )


@dataclass(frozen=True)
class InstructWriter(StreamWriter):
    """`ReplyWriter`, `ChannelsWriter` and `StreamWriter` of the native API; `id` is that of the answer."""

    options: InstructOptions
    request_id: str
    id: str

    def reply(self, answer: Answer) -> Response:
        format = self.options.format
        return Response(write_reply(answer, format, self.options.timestamps), media_type=MEDIA_TYPES[format])

    def reply_channels(self, answers: Sequence[Answer]) -> Response:
        replies = [instruct_reply(answer, self.options.timestamps) for answer in answers]
        sums = {name: sum(getattr(reply.usage, name) for reply in replies) for name in UsageReply.model_fields}
        longest_s = max(reply.audio_s for reply in replies)
        reply = ChannelsReply(id=self.id, audio_s=longest_s, usage=UsageReply(**sums), channels=replies)
        return Response(reply.model_dump_json(exclude_none=True), media_type=MEDIA_TYPES["json"])

    def text_event(self, text: str, logprobs: Sequence[TokenLogprob]) -> str:
        return DeltaEvent(delta=text, logprobs=chosen_tokens(logprobs) or None).model_dump_json(exclude_none=True)

    def last_events(self, answer: Answer) -> Iterable[str]:
        yield DoneEvent(**dict(instruct_reply(answer, self.options.timestamps))).model_dump_json(exclude_none=True)

    def error_event(self, error: ServeError) -> str:
        # An error's empty fields belong to its shape.
        return ErrorEvent.model_validate({**error.body(), "request_id": self.request_id}).model_dump_json()


def write_reply(answer: Answer, format: ReplyFormat, timestamps: Timestamps = "none") -> str:
    """Return the body of a reply in a format; only JSON has `timestamps`."""
    match format:
        case "json":
            return instruct_reply(answer, timestamps).model_dump_json(exclude_none=True)
        case "text":
            return answer.done.text
        case "srt":
            return srt(answer.segments)
        case "vtt":
            return vtt(answer.segments)


def instruct_reply(answer: Answer, timestamps: Timestamps = "none") -> InstructReply:
    """Return an answer in the reply's shape, with its segments and its words, if it has any, as far as `timestamps` asks."""
    done = answer.done
    usage, speculation = done.usage, done.speculation
    return InstructReply(
        id=done.request_id,
        text=done.text,
        finish_reason=done.finish_reason,
        language=done.language,
        usage=UsageReply(**vars(usage), total_tokens=usage.audio_frames + usage.text_tokens + usage.output_tokens),
        audio_s=round(answer.audio_s, 3),
        times_ms=done.times.as_milliseconds(),
        speculation=SpeculationReply(**vars(speculation)),
        logprobs=None if done.logprobs is None else chosen_tokens(done.logprobs),
        segments=None if timestamps == "none" else [_segment(each) for each in answer.segments],
        words=[_word(each) for each in done.words] if timestamps == "words" and done.words is not None else None,
        basis=answer.basis,
        sections=answer.sections,
        warnings=list(answer.warnings) or None,
    )


def chosen_tokens(logprobs: Sequence[TokenLogprob]) -> list[ChosenToken]:
    """Return the tokens in the reply's shape."""
    return [
        ChosenToken(**vars(_likely(token.bytes, token.logprob)), top=[_likely(*likely) for likely in token.top])
        for token in logprobs
    ]


def _likely(content: bytes, logprob: float) -> LikelyToken:
    return LikelyToken(token=content.decode("utf-8", errors="replace"), bytes=list(content), logprob=logprob)


def _segment(segment: Segment) -> SegmentReply:
    return SegmentReply(start_s=round(segment.start_s, 3), end_s=round(segment.end_s, 3), text=segment.text)


def _word(word: Word) -> WordReply:
    return WordReply(word=word.text, start_s=round(word.start_s, 3), end_s=round(word.end_s, 3))
