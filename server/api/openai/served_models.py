"""The names under which the server's model is asked for, and `/v1/models`."""

import re
import time
from typing import Literal

from pydantic import BaseModel

from server.errors import ModelNotFound

SHOWN_NAME = re.compile(r"[\w./:@+-]{1,128}", re.ASCII)


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "thinbridge"
    root: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ServedModels:
    """One model under its own name and its `aliases`. The first name is the model's own."""

    def __init__(self, name: str, aliases: tuple[str, ...]) -> None:
        created_s = int(time.time())
        names = dict.fromkeys((name, *aliases))
        self.name = name
        self._cards = {each: ModelCard(id=each, created=created_s, root=name) for each in names}

    def list_all(self) -> ModelList:
        return ModelList(data=list(self._cards.values()))

    def find(self, name: str) -> ModelCard:
        """Return the model with this name. Raises `ModelNotFound`."""
        card = self._cards.get(name)
        if card is None:
            shown = f"model `{name}`" if SHOWN_NAME.fullmatch(name) else "model"
            raise ModelNotFound(f"The {shown} does not exist; GET /v1/models lists the names of those that do.", param="model")
        return card

    def resolve(self, name: str | None) -> str:
        """Return the own name of the model that a request asks for, by default the only one. Raises `ModelNotFound`."""
        return self.name if name is None else self.find(name).root
