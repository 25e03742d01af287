"""The content of Wyoming's events: the requests that are taken, and the description of this server."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from server.api.openai.languages import NAMES, language_code
from server.api.wyoming.wire import WyomingEvent
from server.audio.wave_header import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, PcmFormat
from server.errors import InvalidRequest

MAX_KEYWORDS, MAX_KEYWORD_CHARACTERS = 64, 64
ATTRIBUTION = {"name": "Thinbridge", "url": ""}


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
