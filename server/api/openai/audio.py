"""`POST /v1/audio/transcriptions` and `POST /v1/audio/translations`."""

import time
import uuid
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import Form, parse_beside_loop
from server.api.call import Call, StreamWriter
from server.api.context import ServerContext
from server.api.exchange import answer_request
from server.api.middleware import client_of, request_id_of
from server.api.native.schema import ErrorReply
from server.api.openai.fields import Upload, parse_options, parse_upload, read_upload
from server.api.openai.transcription_options import MAX_PROMPT_CHARACTERS, SpeechOptions, TranscriptionOptions, TranslationOptions
from server.api.openai.transcription_replies import ChunkWriter, TranscriptWriter
from server.api.options import AUDIO_SCHEMA, DEFAULT_INSTRUCTION, inlined_schemas
from server.audio.raw import parse_raw_type
from server.engine.types.options import VoiceOptions
from server.engine.types.requests import InstructRequest, SpeechTask

# Our fields, and OpenAI's that ask for the same.
PARAMS = {
    "audio": "file",
    "timestamps": "timestamp_granularities",
    "max_tokens": "max_completion_tokens",
    "instruction": "prompt",
}
# The kinds of replies beside JSON, for OpenAPI.
REPLIES: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}, "text/event-stream": {}}


def audio_router(context: ServerContext) -> APIRouter:
    """Return the routes for transcripts and translations."""
    router = APIRouter()

    async def answer(request: Request, model: type[SpeechOptions]) -> Response:
        async def make_call(body: Form | bytearray) -> Call:
            parse = partial(parse_upload, model=model)
            upload = parse(body) if isinstance(body, Form) else await parse_beside_loop(parse, body)
            options, warnings = parse_options(model, upload.values, request.query_params)
            return _call(context, request, upload, options, warnings)

        read = partial(read_upload, request, context.bodies, model)
        return await answer_request(request, context, read, make_call)

    @router.post(
        "/v1/audio/transcriptions",
        summary="Transcribe a piece of audio, as OpenAI's API does",
        responses={200: {"description": "The transcript.", "content": REPLIES}, "default": {"model": ErrorReply}},
        openapi_extra={"requestBody": _body_description(TranscriptionOptions)},
    )
    async def transcribe(request: Request) -> Response:
        return await answer(request, TranscriptionOptions)

    @router.post(
        "/v1/audio/translations",
        summary="Translate a piece of audio into English, as OpenAI's API does",
        responses={200: {"description": "The translation.", "content": REPLIES}, "default": {"model": ErrorReply}},
        openapi_extra={"requestBody": _body_description(TranslationOptions)},
    )
    async def translate(request: Request) -> Response:
        return await answer(request, TranslationOptions)

    return router


def _call(
    context: ServerContext,
    request: Request,
    upload: Upload,
    options: SpeechOptions,
    warnings: tuple[str, ...],
) -> Call:
    """Return the options in the engine's terms. Raises the error of one that cannot be honoured."""
    model = context.models.find(options.model)
    is_translation = isinstance(options, TranslationOptions)
    limit = context.settings.max_tokens_limit
    if (options.max_completion_tokens or 0) > limit:
        warnings = (*warnings, f"The text has at most {limit} tokens.")
    if len(options.prompt) > MAX_PROMPT_CHARACTERS:
        warnings = (*warnings, f"Of the prompt only the last {MAX_PROMPT_CHARACTERS} characters count.")
    spoken = options.spoken()
    id = f"transcription-{uuid.uuid4().hex}"
    task = SpeechTask(
        options.instruction if isinstance(options, TranslationOptions) else DEFAULT_INSTRUCTION,
        options.sampling(limit),
        word_times=options.word_times,
        language=spoken.language,
        languages=spoken.languages,
        prompt=options.end_of_prompt,
        keywords=options.all_keywords(),
    )
    engine_request = InstructRequest(id, np.empty(0, np.float32), task, client_of(request))
    transcript = TranscriptWriter(
        request_id=request_id_of(request),
        task="translate" if is_translation else "transcribe",
        format=options.response_format,
        granularities=options.timestamp_granularities if isinstance(options, TranscriptionOptions) else (),
        logprobs=isinstance(options, TranscriptionOptions) and bool(options.include),
        language=spoken.language,
        into=options.into if isinstance(options, TranslationOptions) else None,
        temperature=options.temperature,
        warnings=warnings,
    )
    stream_writer: StreamWriter = transcript
    if options.streams_chunks:
        include, continuous = bool(options.stream_include_usage), bool(options.stream_continuous_usage_stats)
        stream_writer = ChunkWriter(transcript, id, int(time.time()), model.name, include, continuous)
    voice = options.voice if isinstance(options, TranscriptionOptions) else None
    return Call(
        upload.audio,
        engine_request,
        transcript,
        stream_writer if options.stream else None,
        model=model,
        raw=parse_raw_type(upload.audio_type, PARAMS["audio"]),
        cut_at_pauses=voice is not None,
        voice=voice or VoiceOptions(),
        # A translation of long audio is that of each utterance, by the speech decoder.
        scope="utterance",
        params=PARAMS
        | ({"instruction": "to_language"} if "to_language" in options.model_fields_set else {})
        | ({"language": "languages"} if options.language is None else {}),
    )


def _body_description(model: type[SpeechOptions]) -> dict[str, Any]:
    """Return the request body, for the OpenAPI page."""
    properties = {"file": AUDIO_SCHEMA, **inlined_schemas(model)}
    schema = {"type": "object", "required": ["file"], "additionalProperties": True, "properties": properties}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
