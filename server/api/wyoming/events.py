"""Wyoming's events: their bytes, the requests that are taken, and the description of this server.

An event is a line of JSON, then more JSON and a payload where the line gives their lengths.
Source: the description of the protocol in the repository of the Python package `wyoming`, 1.10.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError

from server.api.languages import NAMES, language_code
from server.audio.types import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ
from server.audio.wave_header import PcmFormat
from server.errors import InvalidRequest

MAX_LINE_BYTES = MAX_DATA_BYTES = 1 << 16
MAX_PAYLOAD_BYTES = 1 << 18
DATA = TypeAdapter(dict[str, JsonValue])
MAX_KEYWORDS, MAX_KEYWORD_CHARACTERS = 64, 64
ATTRIBUTION = {"name": "Thinbridge", "url": ""}


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


class Transcribe(BaseModel):
    """The options of the audio to come. Names and terms are hints: of very many the first count."""

    name: str | None = None
    language: str | None = None
    transcript_names: list[str] | None = None
    transcript_terms: list[str] | None = None

    @property
    def language_code(self) -> str | None:
        return language_code(self.language) or None if self.language else None

    @property
    def keywords(self) -> tuple[str, ...]:
        words = [*(self.transcript_names or ()), *(self.transcript_terms or ())]
        return tuple(word for word in words if 0 < len(word) <= MAX_KEYWORD_CHARACTERS)[:MAX_KEYWORDS]


class AudioStart(BaseModel):
    """The format of the audio: bytes in a sample are its `width`."""

    rate: int = Field(ge=MIN_RATE_HZ, le=MAX_RATE_HZ)
    width: int = Field(ge=1, le=4)
    channels: int = Field(ge=1, le=MAX_CHANNELS)

    @property
    def format(self) -> PcmFormat:
        return PcmFormat(self.rate, bits=8 * self.width, channels=self.channels)


def read_transcribe(event: WyomingEvent) -> Transcribe:
    """Raises `InvalidRequest`."""
    try:
        return Transcribe.model_validate(event.data)
    except ValidationError:
        raise InvalidRequest("The event transcribe takes a name and a language as texts, and lists of texts.") from None


def read_audio_start(event: WyomingEvent) -> AudioStart:
    """Raises `InvalidRequest`."""
    try:
        return AudioStart.model_validate(event.data)
    except ValidationError:
        raise InvalidRequest(
            f"The event audio-start needs a rate from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, a width from 1 to 4 bytes "
            f"and 1 to {MAX_CHANNELS} channels."
        ) from None


def describe(models: Iterable[str]) -> dict[str, Any]:
    """Return the content of the event `info`, by which clients choose a model and a language."""
    artifact = {"attribution": ATTRIBUTION, "installed": True, "version": "1"}
    described = [{"name": name, "description": name, "languages": [*NAMES], **artifact} for name in models]
    program = {"name": "thinbridge", "description": "Thinbridge", **artifact, "models": described}
    others = {kind: list[Any]() for kind in ("tts", "handle", "intent", "wake", "mic", "snd")}
    return {"asr": [program], **others}
