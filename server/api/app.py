"""The HTTP application around an engine: start and stop, routes, and one shape for every error."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match

from server.api.access.keys import load_keys
from server.api.access.limits import KeyUsage
from server.api.access.proxies import TrustedProxies
from server.api.context import ServerContext, build_decode_pool
from server.api.deepgram.listen import listen_router
from server.api.error_replies import error_response, no_such_path
from server.api.middleware import AccessGuard, RequestContext, request_id_of
from server.api.native.rest import instruct_router
from server.api.native.schema import ErrorReply
from server.api.native.session import stream_router
from server.api.openai.audio import audio_router
from server.api.openai.chat import chat_router
from server.api.openai.models import models_router
from server.api.openai_realtime.stream import realtime_router
from server.api.reference import reference_page
from server.api.wyoming.listener import WyomingListener
from server.constraints.sandbox import GrammarSandbox
from server.errors import InvalidRequest, MethodNotAllowed, NotReady, ServeError, UpgradeRequired
from server.observability.metrics import Metrics
from server.observability.traces import NoTracing, Tracing, open_tracing
from server.registry.registry import RETRY_AFTER_S, Catalogue, ModelRegistry, ModelSource, ModelState, beside_loop, no_catalogue
from server.settings import Settings

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")
SAMPLE = Path(__file__).parents[1] / "assets" / "selfcheck.flac"
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' blob:; "
    "connect-src 'self'; img-src data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def create_app(sources: Sequence[ModelSource], settings: Settings, catalogue: Catalogue = no_catalogue) -> FastAPI:
    """Return the application, which starts the models in the background and drains them at shutdown.

    The first of the `sources` is the default, and the `catalogue` has further models, which operators may load. The app's
    `ServerContext` is at `app.state.context`. Raises `ValueError` if the models cannot be served together, or traces not be made.
    """
    models = ModelRegistry(
        sources,
        aliases=settings.model_alias_names,
        catalogue=catalogue,
        waiting_limit=settings.slots + settings.queue_limit,
        drain_timeout_s=settings.drain_timeout_s,
        idle_timeout_s=settings.model_idle_timeout_s,
    )
    decode_pool = build_decode_pool(models.default.sample_rate_hz, settings)
    tracing: Tracing = open_tracing() if settings.traces else NoTracing()
    metrics = Metrics(models.stats, lambda: decode_pool.restarts)
    for model in models.models:
        metrics.add_model(model.name)
    context = ServerContext(models, settings, decode_pool, GrammarSandbox(), metrics, load_keys(settings), KeyUsage())
    app = FastAPI(
        title="Thinbridge",
        summary="Audio and an instruction in, text out.",
        version="1",
        lifespan=_lifespan(context, tracing),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    # The last that is added is the outermost.
    app.add_middleware(AccessGuard, settings=settings, keys=context.keys, usage=context.usage, models=models)
    proxies = TrustedProxies(settings.trusted_networks)
    app.add_middleware(RequestContext, proxies=proxies, metrics=metrics, tracing=tracing)
    app.add_exception_handler(ServeError, _on_serve_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.include_router(instruct_router(context))
    app.include_router(stream_router(context))
    app.include_router(audio_router(context))
    app.include_router(chat_router(context))
    app.include_router(models_router(context))
    app.include_router(realtime_router(context))
    app.include_router(listen_router(context))
    _add_operations(app, context)
    return app


def _lifespan(context: ServerContext, tracing: Tracing) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def run(_app: FastAPI) -> AsyncIterator[None]:
        await context.decode_pool.start()
        context.models.begin()
        port = context.settings.wyoming_port
        wyoming = None if port is None else WyomingListener(context, port)
        try:
            if wyoming is not None:
                await wyoming.start()
                context.listeners.append(wyoming)
            yield
        finally:
            if wyoming is not None:
                await wyoming.close()
            await context.models.close(context.settings.drain_timeout_s)
            await context.decode_pool.close()
            await context.grammar_sandbox.close()
            await beside_loop(tracing.close)

    return run


def _add_operations(app: FastAPI, context: ServerContext) -> None:
    page, sample = PAGE.read_text(encoding="utf-8"), SAMPLE.read_bytes()

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.head("/sample.flac", include_in_schema=False)
    @app.get("/sample.flac", include_in_schema=False)
    async def send_sample() -> Response:
        return Response(sample, media_type="audio/flac")

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def show_reference() -> Response:
        return HTMLResponse(reference_page(app.openapi()), headers=PAGE_HEADERS)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Liveness: the process answers")
    async def health() -> dict[str, str | dict[str, ModelState]]:
        return {"status": "ok", **_states(context)}

    @app.head("/ready", include_in_schema=False)
    @app.get(
        "/ready",
        summary="Readiness: the models take requests, or the one that is named does",
        responses={404: {"model": ErrorReply}, 503: {"model": ErrorReply}},
    )
    async def ready(model: str | None = None) -> dict[str, str | dict[str, ModelState]]:
        context.models.require_ready()
        if model is not None:
            context.models.find(model).require_ready()
        elif context.models.is_starting:
            raise NotReady("The server is not ready to take requests.", retry_after_s=RETRY_AFTER_S)
        return {"status": "ready", **_states(context)}

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", summary="Metrics in Prometheus' text format", response_class=Response)
    async def metrics() -> Response:
        return Response(context.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _states(context: ServerContext) -> dict[str, dict[str, ModelState]]:
    """Return what probes show of each model; nothing on a server with keys, as probes have none."""
    return {"models": {model.name: model.state for model in context.models.models}} if context.keys.is_open else {}


async def _on_serve_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServeError):
        raise error
    if error.status >= 500:
        logger.warning("request %s: %s", request_id_of(request), error.message)
    return error_response(request.scope, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer Starlette's own refusals: no such route, or not with this method."""
    if not isinstance(error, HTTPException):
        raise error
    known: dict[int, ServeError] = {
        404: no_such_path(),
        405: MethodNotAllowed("This address does not take this method."),
    }
    refusal = known.get(error.status_code, InvalidRequest("The request is malformed."))
    as_socket = {**request.scope, "type": "websocket"}
    if error.status_code == 404 and any(route.matches(as_socket)[0] is Match.FULL for route in request.app.routes):
        refusal = UpgradeRequired("This address takes WebSockets.")
    response = error_response(request.scope, refusal)
    response.headers.update(error.headers or {})
    return response


async def _on_validation_error(request: Request, _error: Exception) -> Response:
    return error_response(request.scope, InvalidRequest("The request is malformed."))
