"""Loading and unloading of models while the server runs, for operators: `POST /v1/models/{name}/load` and `…/unload`."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from server.api.context import ServerContext
from server.api.native.schema import ErrorReply
from server.api.openai.models import ModelCard, card_of
from server.errors import AdminRequired, NotReady

RESPONSES: dict[int | str, dict[str, Any]] = {
    403: {"model": ErrorReply, "description": "The request does not come from an operator."},
    404: {"model": ErrorReply, "description": "There is no model of this name."},
    500: {"model": ErrorReply, "description": "The model could not be loaded; the message says why."},
}


def model_admin_router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.post("/v1/models/{name:path}/load", summary="Load a model, and answer when it is ready", responses=RESPONSES)
    async def load(request: Request, name: str) -> ModelCard:
        _require_admin(context, request)
        model = await context.models.load(name)
        return card_of(model.name, model)

    @router.post(
        "/v1/models/{name:path}/unload",
        summary="Let a model finish what it has begun, and unload it",
        responses={status: RESPONSES[status] for status in (403, 404)},
    )
    async def unload(request: Request, name: str) -> ModelCard:
        _require_admin(context, request)
        model = await context.models.unload(name)
        return card_of(model.name, model)

    return router


def _require_admin(context: ServerContext, request: Request) -> None:
    """Raise `AdminRequired` unless the request comes from an operator, and `NotReady` while the server stops."""
    if not request.state.is_admin:
        raise AdminRequired(
            "This needs a request from the server's own machine."
            if context.keys.is_open
            else "This needs an API key that is marked admin."
        )
    if context.models.stopping:
        raise NotReady("The server is stopping.")
