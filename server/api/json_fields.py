"""Fields of JSON messages, beside those of `server.api.fields` that forms have too."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from server.api.multipart import PLAIN_NAME
from server.errors import InvalidRequest, UnknownField


class JsonField(Protocol):
    """One kind of field; one that is missing has its `default`."""

    @property
    def default(self) -> Any: ...

    def check(self, name: str, value: object) -> Any:
        """What a value from JSON stands for. Raises `InvalidRequest`."""
        ...


@dataclass(frozen=True)
class Flag:
    """A truth value."""

    default: bool

    def check(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name} has to be true or false.", param=name)
        return value


@dataclass(frozen=True)
class Text:
    """Any text of 1 to `max_characters` characters."""

    max_characters: int
    default: None = None

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= self.max_characters:
            raise InvalidRequest(f"{name} has to be text of 1 to {self.max_characters} characters.", param=name)
        return value


@dataclass(frozen=True)
class Json:
    """Whatever it is, but null, it stays JSON: what it means is read elsewhere."""

    default: None = None

    def check(self, name: str, value: object) -> str:
        if value is None:
            raise InvalidRequest(f"{name} is empty.", param=name)
        return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Object:
    """An object of known fields, all of which have a value afterwards; without it they all have their defaults."""

    fields: Mapping[str, JsonField]

    @property
    def default(self) -> dict[str, Any]:
        return {name: field.default for name, field in self.fields.items()}

    def check(self, name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise InvalidRequest(f"{name} has to be a JSON object.", param=name)
        for key in value:
            if key not in self.fields:
                shown = key if PLAIN_NAME.fullmatch(key) else None
                raise UnknownField(f"{name} has an unknown field; the fields are {', '.join(self.fields)}.", param=shown)
        given = {key: self.fields[key].check(key, part) for key, part in value.items()}
        return {**self.default, **given}
