"""Kinds of fields: what each takes, how it is read, and how the API's description puts it.

`read` takes the text of a form's field, `check` a value that came as JSON; both raise `InvalidRequest`. A field that is missing
has its `default`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from server.errors import InvalidInstruction, InvalidRequest

INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", re.ASCII)


class Field(Protocol):
    """One kind of field."""

    @property
    def default(self) -> Any: ...

    def read(self, name: str, text: str) -> Any: ...

    def check(self, name: str, value: object) -> Any: ...

    def schema(self) -> dict[str, Any]:
        """In JSON Schema."""
        ...


@dataclass(frozen=True)
class Instruction:
    """Text as it is, not blank, of at most so many characters."""

    max_characters: int
    default: None = None

    def read(self, name: str, text: str) -> str:
        return self.check(name, text)

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise InvalidInstruction(f"The {name} has to be text.", param=name)
        if not value.strip():
            raise InvalidInstruction(f"The {name} is empty.", param=name)
        if len(value) > self.max_characters:
            raise InvalidInstruction(f"The {name} is longer than {self.max_characters} characters.", param=name)
        if "\0" in value:
            raise InvalidInstruction(f"The {name} holds a NUL character.", param=name)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": self.max_characters}


@dataclass(frozen=True)
class Integer:
    """A whole number in decimal digits, from `low` to `high`."""

    description: str
    low: int
    high: int
    default: int | None = None

    def read(self, name: str, text: str) -> int:
        return self.check(name, int(text) if INTEGER.fullmatch(text) else None)

    def check(self, name: str, value: object) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise InvalidRequest(f"{name} has to be a whole number from {self.low} to {self.high}.", param=name)
        return value

    def schema(self) -> dict[str, Any]:
        default = {} if self.default is None else {"default": self.default}
        return {"type": "integer", "minimum": self.low, "maximum": self.high, "description": self.description, **default}


@dataclass(frozen=True)
class Number:
    """A decimal number without an exponent, from `low` to `high`."""

    description: str
    low: float
    high: float
    default: float

    def read(self, name: str, text: str) -> float:
        return self.check(name, float(text) if NUMBER.fullmatch(text) else None)

    def check(self, name: str, value: object) -> float:
        if not is_number(value) or not self.low <= value <= self.high:
            raise InvalidRequest(f"{name} has to be a number from {self.low:g} to {self.high:g}.", param=name)
        return float(value)

    def schema(self) -> dict[str, Any]:
        limits = {"minimum": self.low, "maximum": self.high}
        return {"type": "number", **limits, "default": self.default, "description": self.description}


@dataclass(frozen=True)
class Share:
    """A decimal number above 0 and up to 1, by default all."""

    description: str
    default: float = 1.0

    def read(self, name: str, text: str) -> float:
        return self.check(name, float(text) if NUMBER.fullmatch(text) else None)

    def check(self, name: str, value: object) -> float:
        if not is_number(value) or not 0 < value <= 1:
            raise InvalidRequest(f"{name} has to be a number above 0 and up to 1.", param=name)
        return float(value)

    def schema(self) -> dict[str, Any]:
        limits = {"exclusiveMinimum": 0, "maximum": 1}
        return {"type": "number", **limits, "default": self.default, "description": self.description}


@dataclass(frozen=True)
class Choice:
    """One of some words, by default the first."""

    description: str
    words: tuple[str, ...]

    @property
    def default(self) -> str:
        return self.words[0]

    def read(self, name: str, text: str) -> str:
        return self.check(name, text)

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise InvalidRequest(f"{name} has to be one of {', '.join(self.words)}.", param=name)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words), "default": self.default, "description": self.description}


@dataclass(frozen=True)
class Notation:
    """Text in a notation that is read elsewhere; there has to be some."""

    description: str
    media_type: str
    default: None = None

    def read(self, name: str, text: str) -> str:
        return self.check(name, text)

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise InvalidRequest(f"{name} has to be text.", param=name)
        if not value:
            raise InvalidRequest(f"{name} is empty.", param=name)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "contentMediaType": self.media_type, "description": self.description}


@dataclass(frozen=True)
class Strings:
    """A JSON array of strings, none of them empty; by default none at all."""

    description: str
    max_count: int
    max_characters: int
    default: tuple[str, ...] = ()

    def read(self, name: str, text: str) -> tuple[str, ...]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        return self.check(name, value)

    def check(self, name: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > self.max_count or not all(map(self._takes, value)):
            limits = f"up to {self.max_count} strings of 1 to {self.max_characters} characters"
            raise InvalidRequest(f"{name} has to be a JSON array of {limits}.", param=name)
        return tuple(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "contentMediaType": "application/json", "description": self.description}

    def _takes(self, value: object) -> bool:
        if not isinstance(value, str) or not 1 <= len(value) <= self.max_characters:
            return False
        # JSON's escapes can spell half a character, which no text holds.
        return not any("\ud800" <= character <= "\udfff" for character in value)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value from JSON is a number, which no truth value is."""
    return isinstance(value, int | float) and not isinstance(value, bool)
