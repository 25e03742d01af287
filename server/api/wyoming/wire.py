"""Wyoming's events as bytes: a line of JSON, then more JSON and a payload where the line gives their lengths.

Source: the description of the protocol in the repository of the Python package `wyoming`, 1.10.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError

from server.errors import InvalidRequest

MAX_LINE_BYTES = MAX_DATA_BYTES = 1 << 16
MAX_PAYLOAD_BYTES = 1 << 18
DATA = TypeAdapter(dict[str, JsonValue])


class Header(BaseModel):
    """The line of an event; names that are not known are ignored."""

    type: str = Field(max_length=64)
    data: dict[str, JsonValue] = Field(default_factory=dict)
    data_length: int | None = Field(None, ge=0, le=MAX_DATA_BYTES)
    payload_length: int | None = Field(None, ge=0, le=MAX_PAYLOAD_BYTES)


class WyomingEvent(BaseModel):
    """One event. The payload is audio."""

    type: str
    data: dict[str, JsonValue]
    payload: bytes = b""


async def read_event(reader: asyncio.StreamReader) -> WyomingEvent | None:
    """Return the next event, or None behind the last. Raises `InvalidRequest` for what is none."""
    try:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            return None
        header = Header.model_validate_json(line)
        data = await reader.readexactly(header.data_length or 0)
        payload = await reader.readexactly(header.payload_length or 0)
        more = DATA.validate_json(data) if data else {}
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    # A line that is too long is a plain `ValueError`.
    except (ValidationError, ValueError):
        raise InvalidRequest("An event is a line of JSON with a type, and lengths up to the protocol's limits.") from None
    return WyomingEvent(type=header.type, data={**header.data, **more}, payload=payload)


def event_bytes(type: str, data: Mapping[str, Any]) -> bytes:
    """Return an event without a payload."""
    content = json.dumps(data, ensure_ascii=False).encode()
    return json.dumps({"type": type, "data_length": len(content)}).encode() + b"\n" + content
