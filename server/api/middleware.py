"""The chain that every request and WebSocket passes before any route, so that a new route is closed until it is opened here.

From the outside in: `RequestContext`, which sees through trusted proxies, and `AccessGuard`.
"""

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import Iterator

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.access.keys import KeyRing, offered_keys, split_subprotocols
from server.api.access.limits import KeyUsage
from server.api.access.proxies import TrustedProxies, client_name
from server.api.access.sites import SiteRules, cors_headers, is_preflight, preflight_headers
from server.api.error_replies import error_response, no_such_path
from server.errors import ForbiddenHost, InvalidKey, NotReady, ServeError
from server.observability.metrics import Metrics
from server.observability.traces import RequestSpan, Tracing
from server.registry.registry import RETRY_AFTER_S, ModelRegistry
from server.settings import Settings, is_loopback

logger = logging.getLogger(__name__)

SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
CLIENT_LEFT_STATUS = 499
SWITCHING_STATUS = 101
# Probes have no keys, and are answered while the server stops.
PROBES = frozenset({"/health", "/ready"})
PAGES = frozenset({"/", "/sample.flac", "/docs", "/openapi.json"})
METRICS = frozenset({"/metrics"})
# Set by reverse proxies, so the request is not known to come from this machine.
FORWARDED_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-real-ip")


class RequestContext:
    """The outermost layer: gives a request an id and a span, counts it, adds `x-request-id` to its reply, and turns bugs into
    one 500. Behind this layer the client, the scheme and the host are those that a trusted proxy names.
    """

    def __init__(self, app: ASGIApp, proxies: TrustedProxies, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._proxies = proxies
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope = self._proxies.see_through(scope)
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


class AccessGuard:
    """The layer that refuses, in this order: hosts, origins, missing and wrong keys, keys beyond their limits, and new work
    while the server stops.

    A WebSocket is refused by an HTTP reply before it is accepted. Behind this layer the state of a scope has the `client`, whose
    share the request counts against: the key's name, or the address on a server without keys. Its `is_admin` says whether the
    request comes from an operator: by a key that is marked, or from this machine on a server without keys.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: KeyRing, usage: KeyUsage, models: ModelRegistry) -> None:
        self._app = app
        self._keys = keys
        self._usage = usage
        self._models = models
        self._sites = SiteRules((*settings.allowed_host_names, settings.host), settings.allowed_origin_names)
        self._open_paths = PROBES | (PAGES if settings.public_page else set()) | (METRICS if settings.public_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers, extra = Headers(scope=scope), dict[str, str]()
        names, protocol_keys = split_subprotocols(scope.get("subprotocols", ()))
        method: str = scope.get("method", "GET")

        async def send_on(message: Message) -> None:
            if message["type"] == "websocket.accept" and not message.get("subprotocol") and names:
                # A browser gives up if none of the names that it offered comes back, and a key must not.
                message["subprotocol"] = names[0]
            if message["type"] == "websocket.close" and "route" not in scope:
                await error_response(scope, no_such_path())(scope, receive, send_on)
                return
            if extra and message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message).update(extra)
            await send(message)

        with contextlib.ExitStack() as held:
            try:
                self._sites.check_host(headers, http_version=scope["http_version"])
                # Also in replies that no origin was allowed for, as caches have to know.
                extra["vary"] = "Origin"
                if origin := self._sites.check_origin(headers, method="POST" if scope["type"] == "websocket" else method):
                    extra |= cors_headers(origin)
                    if is_preflight(headers, method=method):
                        await Response(status_code=204, headers=preflight_headers(origin, headers))(scope, receive, send_on)
                        return
                client, is_admin = held.enter_context(self._admitted(scope, headers, protocol_keys))
                scope["state"] |= {"client": client, "is_admin": is_admin}
            except ServeError as error:
                if isinstance(error, ForbiddenHost):
                    logger.warning("A request named the host %.100r, which is not in allowed_hosts.", headers.get("host"))
                await error_response(scope, error)(scope, receive, send_on)
                return
            if "subprotocols" in scope:
                scope["subprotocols"] = names
            await self._app(scope, receive, send_on)

    @contextlib.contextmanager
    def _admitted(self, scope: Scope, headers: Headers, protocol_keys: list[str]) -> Iterator[tuple[str, bool]]:
        """Yield the name of the client, and whether it may administer the server, while its request lasts.

        Raises `InvalidKey`, `RateLimited` or `NotReady`.
        """
        is_open = scope["path"] in self._open_paths and scope.get("method") in ("GET", "HEAD")
        with contextlib.ExitStack() as held:
            address = scope["client"][0] if scope["client"] else ""
            name = client_name(address)
            # A proxy that is not trusted may speak for any client.
            is_admin = self._keys.is_open and is_loopback(address) and not any(header in headers for header in FORWARDED_HEADERS)
            if not self._keys.is_open and not is_open:
                offered = (*offered_keys(headers), *protocol_keys)
                key = self._keys.find(offered)
                if key is None:
                    raise InvalidKey(
                        "The API key is not valid."
                        if offered
                        else "This server needs an API key, in the header Authorization: Bearer KEY."
                    )
                name, is_admin = key.name, key.is_admin
                held.enter_context(self._usage.request(key))
            if self._models.stopping and scope["path"] not in self._open_paths:
                raise NotReady("The server is stopping.", retry_after_s=RETRY_AFTER_S)
            yield name, is_admin


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
