"""Kinds of form fields: what each takes, how it is read, and how the API's description puts it.

`read` raises `InvalidRequest`; a field that a form lacks has its `default`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

from server.errors import InvalidInstruction, InvalidRequest

INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", re.ASCII)


class Field(Protocol):
    """One kind of field."""

    @property
    def default(self) -> Any: ...

    def read(self, name: str, text: str) -> Any: ...

    def schema(self) -> dict[str, Any]:
        """In JSON Schema."""
        ...


@dataclass(frozen=True)
class Instruction:
    """Text as it is, not blank, of at most so many characters."""

    max_characters: int
    default: None = None

    def read(self, name: str, text: str) -> str:
        if not text.strip():
            raise InvalidInstruction(f"The {name} is empty.", param=name)
        if len(text) > self.max_characters:
            raise InvalidInstruction(f"The {name} is longer than {self.max_characters} characters.", param=name)
        if "\0" in text:
            raise InvalidInstruction(f"The {name} holds a NUL character.", param=name)
        return text

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
        if not INTEGER.fullmatch(text) or not self.low <= int(text) <= self.high:
            raise InvalidRequest(f"{name} has to be a whole number from {self.low} to {self.high}.", param=name)
        return int(text)

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
        if not NUMBER.fullmatch(text) or not self.low <= float(text) <= self.high:
            raise InvalidRequest(f"{name} has to be a number from {self.low:g} to {self.high:g}.", param=name)
        return float(text)

    def schema(self) -> dict[str, Any]:
        limits = {"minimum": self.low, "maximum": self.high}
        return {"type": "number", **limits, "default": self.default, "description": self.description}


@dataclass(frozen=True)
class Share:
    """A decimal number above 0 and up to 1, by default all."""

    description: str
    default: float = 1.0

    def read(self, name: str, text: str) -> float:
        if not NUMBER.fullmatch(text) or not 0 < float(text) <= 1:
            raise InvalidRequest(f"{name} has to be a number above 0 and up to 1.", param=name)
        return float(text)

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
        if text not in self.words:
            raise InvalidRequest(f"{name} has to be one of {', '.join(self.words)}.", param=name)
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words), "default": self.default, "description": self.description}


@dataclass(frozen=True)
class Notation:
    """Text in a notation that is read elsewhere; there has to be some."""

    description: str
    media_type: str
    default: None = None

    def read(self, name: str, text: str) -> str:
        if not text:
            raise InvalidRequest(f"{name} is empty.", param=name)
        return text

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
