"""Deepgram's `/v1/listen`: `POST` for files, a WebSocket for live audio."""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from server.api.body import read_whole_body
from server.api.call import Answer, Call
from server.api.context import ServerContext
from server.api.deepgram.description import ListenError, describe_request
from server.api.deepgram.options import ListenOptions, read_options
from server.api.deepgram.replies import Origin, file_reply
from server.api.deepgram.session import MAX_MESSAGE_BYTES, ListenDialect
from server.api.exchange import answer_request
from server.api.live.accepting import serve_socket
from server.api.middleware import client_of, request_id_of
from server.engine.types.requests import InstructRequest
from server.errors import InvalidRequest, ModelNotFound
from server.registry.registry import ServedModel

# Browsers offer it beside their key.
SUBPROTOCOL = "token"


def listen_router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.post(
        "/v1/listen",
        summary="Transcribe a file, as Deepgram's API does",
        response_model=None,
        responses={"default": {"model": ListenError, "description": "An error; `err_code` says which."}},
        openapi_extra=describe_request(),
    )
    async def transcribe(request: Request) -> Response:
        return await _transcribe(request, context)

    @router.websocket("/v1/listen")
    async def listen(socket: WebSocket) -> None:
        """Live audio as in Deepgram's API."""
        options = read_options(socket.query_params, context.models.default.name)
        if options.multichannel:
            raise InvalidRequest("The channels of live audio are mixed; multichannel is for files.", param="multichannel")
        await serve_socket(
            context,
            socket,
            lambda session: ListenDialect(session, options),
            max_message_bytes=MAX_MESSAGE_BYTES,
            model=_model(context, options),
            subprotocols=(SUBPROTOCOL,),
            headers={"dg-request-id": request_id_of(socket)},
        )

    return router


async def _transcribe(request: Request, context: ServerContext) -> Response:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        raise InvalidRequest("This server fetches nothing from a url; send the audio as the body.", param="url")
    if content_type == "multipart/form-data":
        raise InvalidRequest("A form is not read here; send the audio itself as the body.")
    options = read_options(request.query_params, context.models.default.name)

    async def make_call(body: bytearray) -> Call:
        audio = bytes(body)
        writer = ListenWriter(Origin.of(request_id_of(request), options), hashlib.sha256(audio).hexdigest())
        return Call(
            audio,
            InstructRequest(f"listen-{uuid.uuid4().hex}", np.empty(0, np.float32), options.task, client_of(request)),
            writer,
            model=_model(context, options),
            raw=options.raw,
            channels_writer=writer if options.multichannel else None,
        )

    return await answer_request(request, context, partial(read_whole_body, request, context.bodies), make_call)


def _model(context: ServerContext, options: ListenOptions) -> ServedModel:
    """Return the model that a client asks for. Deepgram's own names, and any that is not known, mean the default."""
    try:
        return context.models.find(options.model)
    except ModelNotFound:
        return context.models.default


@dataclass(frozen=True)
class ListenWriter:
    """`ReplyWriter` and `ChannelsWriter` of Deepgram's API for files."""

    origin: Origin
    sha256: str

    def reply(self, answer: Answer) -> Response:
        return self.reply_channels([answer])

    def reply_channels(self, answers: Sequence[Answer]) -> Response:
        return JSONResponse(file_reply(self.origin, answers, self.sha256))
