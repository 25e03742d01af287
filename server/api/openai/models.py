"""`/v1/models`: the models under their own names, and the names that stand for the default."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from server.api.context import ServerContext
from server.api.native.schema import ErrorReply
from server.registry.registry import ModelState, ServedModel


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

    return router


def card_of(name: str, model: ServedModel) -> ModelCard:
    """Return the card of a model under one of its names."""
    return ModelCard(id=name, created=model.created_s, root=model.name, status=model.state)
