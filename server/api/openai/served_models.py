"""`/v1/models`: the models under their own names, and the names that stand for the default."""

from typing import Literal

from pydantic import BaseModel

from server.registry.registry import ModelRegistry, ModelState, ServedModel


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


def card_of(name: str, model: ServedModel) -> ModelCard:
    """Return the card of a model under one of its names."""
    return ModelCard(id=name, created=model.created_s, root=model.name, status=model.state)


def list_cards(models: ModelRegistry) -> ModelList:
    """Return the cards of all names, own ones first."""
    own = [card_of(model.name, model) for model in models.models]
    return ModelList(data=[*own, *(card_of(alias, models.find(alias)) for alias in models.aliases)])
