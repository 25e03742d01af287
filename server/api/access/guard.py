"""The door that every request and WebSocket passes before any route, so that a new route is closed until it is opened here."""

import contextlib
import logging
from collections.abc import Iterator

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.access.keys import offered_keys, split_subprotocols
from server.api.access.proxies import client_name
from server.api.access.shares import Shares
from server.api.access.sites import SiteRules, cors_headers, is_preflight, preflight_headers
from server.api.access.uploads import Upload
from server.api.context import ServerContext
from server.api.error_replies import error_response
from server.errors import ForbiddenHost, InvalidKey, NotFound, NotReady, ServeError
from server.registry.model import RETRY_AFTER_S
from server.settings import is_loopback

logger = logging.getLogger(__name__)

# Probes have no keys, and are answered while the server stops.
PROBES = frozenset({"/health", "/ready"})
PAGES = frozenset({"/", "/sample.flac", "/docs", "/openapi.json"})
METRICS = frozenset({"/metrics"})
# Set by reverse proxies, so the request is not known to come from this machine.
FORWARDED_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-real-ip")
# Unfinished bodies may hold so many times the largest body.
UPLOADS_IN_MEMORY = 16


class AccessGuard:
    """ASGI layer that refuses, in this order: hosts, origins, missing and wrong keys, keys beyond their limits, and new work
    while the server stops.

    A WebSocket is refused by an HTTP reply before it is accepted. Behind this layer the state of a scope has the `client`, whose
    share the request counts against: the key's name, or the address on a server without keys. Its `is_admin` says whether the
    request comes from an operator: by a key that is marked, or from this machine on a server without keys.
    """

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        settings = context.settings
        self._app = app
        self._context = context
        self._sites = SiteRules((*settings.allowed_host_names, settings.host), settings.allowed_origin_names)
        self._open_paths = PROBES | (PAGES if settings.public_page else set()) | (METRICS if settings.public_metrics else set())
        self._uploads = Shares(UPLOADS_IN_MEMORY * settings.max_body_bytes)

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
                await error_response(scope, NotFound("There is nothing at this address."))(scope, receive, send_on)
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
            if scope["type"] == "http":
                timeout_s = self._context.settings.body_timeout_s
                receive = held.enter_context(
                    contextlib.closing(Upload(receive, scope["state"]["client"], self._uploads, timeout_s))
                )
            await self._app(scope, receive, send_on)

    @contextlib.contextmanager
    def _admitted(self, scope: Scope, headers: Headers, protocol_keys: list[str]) -> Iterator[tuple[str, bool]]:
        """Yield the name of the client, and whether it may administer the server, while its request lasts.

        Raises `InvalidKey`, `RateLimited` or `NotReady`.
        """
        is_open = scope["path"] in self._open_paths and scope.get("method") in ("GET", "HEAD")
        keys = self._context.keys
        with contextlib.ExitStack() as held:
            address = scope["client"][0] if scope["client"] else ""
            name = client_name(address)
            # A proxy that is not trusted may speak for any client.
            is_admin = keys.is_open and is_loopback(address) and not any(header in headers for header in FORWARDED_HEADERS)
            if not keys.is_open and not is_open:
                key = keys.find((*offered_keys(headers), *protocol_keys))
                if key is None:
                    raise InvalidKey(
                        "This server needs an API key, in the header Authorization: Bearer KEY."
                        if not (*offered_keys(headers), *protocol_keys)
                        else "The API key is not valid."
                    )
                name, is_admin = key.name, key.is_admin
                held.enter_context(self._context.usage.request(key))
            if self._context.stopping and scope["path"] not in self._open_paths:
                raise NotReady("The server is stopping.", retry_after_s=RETRY_AFTER_S)
            yield name, is_admin
