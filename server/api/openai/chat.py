"""`POST /v1/chat/completions` about speech: messages with a part `input_audio`."""

import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import parse_beside_loop, read_whole_body
from server.api.call import Call
from server.api.context import ServerContext
from server.api.exchange import answer_request
from server.api.middleware import client_of, request_id_of
from server.api.native.schema import ErrorReply
from server.api.openai.chat_options import WITHOUT_EFFECT, ChatOptions, refuse_unsupported
from server.api.openai.chat_replies import ChatWriter
from server.api.openai.conversation import Conversation, read_conversation
from server.api.openai.fields import parse_json, parse_options
from server.api.openai.schema import Completion
from server.api.options import inlined_schemas
from server.engine.types.requests import InstructRequest, SpeechTask

# Our fields, and OpenAI's that ask for the same.
PARAMS = {"audio": "messages", "instruction": "messages", "json_schema": "response_format"}


@dataclass(frozen=True)
class _Chat:
    conversation: Conversation
    options: ChatOptions
    warnings: tuple[str, ...]


def chat_router(context: ServerContext) -> APIRouter:
    """Return the route for chats."""
    router = APIRouter()
    longest_instruction = context.settings.max_instruction_characters

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation about speech, as OpenAI's API does",
        response_model=Completion,
        responses={
            200: {"description": "The answer.", "content": {"text/event-stream": {}}},
            "default": {"model": ErrorReply},
        },
        openapi_extra={"requestBody": _body_description()},
    )
    async def complete(request: Request) -> Response:
        async def make_call(body: bytearray) -> Call:
            parse = partial(_parse_chat, longest_instruction=longest_instruction, query=tuple(request.query_params))
            return _call(context, request, await parse_beside_loop(parse, body))

        read = partial(read_whole_body, request, context.bodies)
        return await answer_request(request, context, read, make_call)

    return router


def _parse_chat(body: bytearray, longest_instruction: int, query: tuple[str, ...]) -> _Chat:
    """Return what a body asks for. Raises the error of what cannot be honoured."""
    values = refuse_unsupported(parse_json(body))
    options, warnings = parse_options(ChatOptions, values, query)
    return _Chat(read_conversation(options.messages, longest_instruction), options, warnings)


def _call(context: ServerContext, request: Request, chat: _Chat) -> Call:
    """Return a chat in the engine's terms. Raises the error of an option that cannot be honoured."""
    options, settings = chat.options, context.settings
    model = context.models.find(options.model)
    sampling = options.sampling(settings.default_max_tokens, settings.max_tokens_limit)
    warnings = chat.warnings
    if (options.longest or 0) > settings.max_tokens_limit:
        warnings = (*warnings, f"The answer has at most {settings.max_tokens_limit} tokens.")
    id = f"chatcmpl-{uuid.uuid4().hex}"
    task = SpeechTask(chat.conversation.instruction, sampling)
    engine_request = InstructRequest(id, np.empty(0, np.float32), task, client_of(request), options.priority)
    writer = ChatWriter(
        request_id=request_id_of(request),
        id=id,
        created_s=int(time.time()),
        model=model.name,
        service_tier="flex" if options.service_tier == "flex" else "default",
        logprobs=options.logprobs,
        include_usage=options.include_usage,
        continuous_usage=options.continuous_usage,
        warnings=warnings,
    )
    stream_writer = writer if options.stream else None
    return Call(chat.conversation.audio, engine_request, writer, stream_writer, model=model, params=PARAMS)


def _body_description() -> dict[str, Any]:
    """Return the request body, for the OpenAPI page."""
    schema = {
        "type": "object",
        "required": ["messages"],
        "additionalProperties": True,
        "properties": {**inlined_schemas(ChatOptions), **{name: {} for name in WITHOUT_EFFECT}},
    }
    return {"required": True, "content": {"application/json": {"schema": schema}}}
