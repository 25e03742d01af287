"""The reply for an error, in the shape that the clients of its address read."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from server.errors import NotFound, ServeError

ErrorBody = Callable[[str, ServeError], dict[str, Any]]
"""Returns the body for a request id and an error."""


def openai_body(request_id: str, error: ServeError) -> dict[str, Any]:
    """Return OpenAI's error object and the request's id: the shape of the native API and of OpenAI's."""
    return {**error.body(), "request_id": request_id}


def deepgram_body(request_id: str, error: ServeError) -> dict[str, Any]:
    """Return Deepgram's shape."""
    return {"err_code": error.code.upper(), "err_msg": error.message, "request_id": request_id}


BODIES: Mapping[str, ErrorBody] = {"/v1/listen": deepgram_body}
"""The shapes of dialects by the beginning of their addresses; everything else has OpenAI's."""


def no_such_path() -> NotFound:
    """Return the error for an address that there is no route for."""
    return NotFound("There is nothing at this address; those of the APIs begin with /v1, and /docs describes them.")


def error_response(scope: Scope, error: ServeError) -> Response:
    """Return the reply for an error of the request or WebSocket of this scope, which has its request id already."""
    request_id: str = HTTPConnection(scope).state.request_id
    bodies = [body for prefix, body in BODIES.items() if scope["path"].startswith(prefix)]
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse((bodies or [openai_body])[0](request_id, error), error.status, headers)
