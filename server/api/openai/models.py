"""`/v1/models`: the models under their own names, and the names that stand for the default, as OpenAI's API lists them.

Operators load and unload models while the server runs: `POST /v1/models/{name}/load` and `…/unload`.
"""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request

from server.api.context import ServerContext
from server.api.native.schema import ErrorReply
from server.errors import AdminRequired, NotReady
from server.registry.registry import ModelState, ServedModel

RESPONSES: dict[int | str, dict[str, Any]] = {
    403: {"model": ErrorReply, "description": "The request does not come from an operator."},
    404: {"model": ErrorReply, "description": "There is no model of this name."},
    500: {"model": ErrorReply, "description": "The model could not be loaded; the message says why."},
}


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "thinbridge"
    root: str
    status: ModelState


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


def models_router(context: ServerContext) -> APIRouter:
    """Return the routes."""
    models = context.models
    router = APIRouter()

    @router.head("/v1/models", include_in_schema=False)
    @router.get("/v1/models", summary="The names of the models, with the default first")
    async def list_models() -> ModelList:
        own = [card_of(model.name, model) for model in models.models]
        return ModelList(data=[*own, *(card_of(alias, models.find(alias)) for alias in models.aliases)])

    @router.head("/v1/models/{name:path}", include_in_schema=False)
    @router.get("/v1/models/{name:path}", summary="One model", responses={404: {"model": ErrorReply}})
    async def show_model(name: str) -> ModelCard:
        return card_of(name, models.find(name))

    @router.post("/v1/models/{name:path}/load", summary="Load a model, and answer when it is ready", responses=RESPONSES)
    async def load(request: Request, name: str) -> ModelCard:
        _require_admin(context, request)
        model = await models.load(name)
        return card_of(model.name, model)

    @router.post(
        "/v1/models/{name:path}/unload",
        summary="Let a model finish what it has begun, and unload it",
        responses={status: RESPONSES[status] for status in (403, 404)},
    )
    async def unload(request: Request, name: str) -> ModelCard:
        _require_admin(context, request)
        model = await models.unload(name)
        return card_of(model.name, model)

    return router


def card_of(name: str, model: ServedModel) -> ModelCard:
    """Return the card of a model under one of its names."""
    return ModelCard(id=name, created=model.created_s, root=model.name, status=model.state)


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
