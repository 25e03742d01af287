"""The outermost layer of every HTTP request and WebSocket: a request id, a count, and one reply for unexpected errors."""

import asyncio
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.error_replies import error_response
from server.errors import NotReady, ServeError
from server.observability.metrics import Metrics
from server.observability.traces import RequestSpan, Tracing

logger = logging.getLogger(__name__)

SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
CLIENT_LEFT_STATUS = 499
SWITCHING_STATUS = 101


class RequestContext:
    """ASGI layer that gives a request an id and a span, adds `x-request-id` to the reply, and turns bugs into one 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        span = self._tracing.begin(scope.get("method", "GET"), scope["path"], headers)
        scope.setdefault("state", {}).update(request_id=request_id, span=span)
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            # A WebSocket is either accepted, or refused like any request.
            if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                status = message.get("status", SWITCHING_STATUS)
                MutableHeaders(scope=message).update({"x-request-id": request_id, **span.headers})
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # The server does not wait any longer for its requests to end.
            if status is None:
                await error_response(scope, NotReady("The server is stopping."))(scope, receive, send_with_id)
        except Exception:
            logger.exception("Request %s met a bug.", request_id)
            if status is None:
                await error_response(scope, ServeError("The server met an unexpected error."))(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.http_requests.labels(route, str(status or CLIENT_LEFT_STATUS)).inc()
            span.end(route, status or CLIENT_LEFT_STATUS)


def request_id_of(request: HTTPConnection) -> str:
    """Return the id that `RequestContext` gave this request."""
    request_id: str = request.state.request_id
    return request_id


def span_of(request: HTTPConnection) -> RequestSpan:
    """Return the span that `RequestContext` gave this request."""
    span: RequestSpan = request.state.span
    return span


def client_of(request: HTTPConnection) -> str:
    """Return whose share a request counts against: the name of its API key, or its address on a server without keys."""
    client: str = request.state.client
    return client


def _request_id(headers: Headers) -> str:
    offered = headers.get("x-request-id", "")
    return offered if SAFE_REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
