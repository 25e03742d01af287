"""The messages of clients of OpenAI's Realtime API, and the options of a transcription session that they set.

Sources: OpenAI's reference of the Realtime API (GA, transcription sessions) and the beta shape that it replaced. Unknown fields
are ignored, as OpenAI's clients send more than they need; a known field that cannot be honoured is an error that names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from server.api.languages import ANY, known_code, language_code
from server.api.options import DEFAULT_INSTRUCTION, SpokenLanguages, expected, first_fault, inlined_schemas
from server.audio.wave_header import ALAW, MULAW, PcmFormat
from server.engine.types.options import SamplingOptions, VoiceOptions
from server.engine.types.requests import LiveRequest, SpeechTask
from server.errors import InvalidRequest

Parsed = TypeVar("Parsed", bound="Lenient")

# Seconds of silence that stand for the eagerness of a semantic voice detector, which this server does not have.
EAGERNESS_SILENCE_S = {"low": 1.2, "medium": 0.8, "auto": 0.8, "high": 0.5}
LOGPROBS = "item.input_audio_transcription.logprobs"
# Without voice detection the client alone ends an utterance; the engine still cuts at long pauses, and at its longest utterance.
MANUAL_SILENCE_S = 5.0
BETA_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}


class Lenient(BaseModel):
    """Fields that a client sends; unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class AudioFormat(Lenient):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Literal[8000, 16000, 24000, 48000] | None = None

    @property
    def rate_hz(self) -> int:
        return self.rate or (24_000 if self.type == "audio/pcm" else 8000)

    def pcm_format(self) -> PcmFormat:
        """Return the format of the samples."""
        if self.type == "audio/pcm":
            return PcmFormat(self.rate_hz)
        return PcmFormat(self.rate_hz, MULAW if self.type == "audio/pcmu" else ALAW, 8)


class TurnDetection(Lenient):
    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0.05, le=0.95)
    prefix_padding_ms: int = Field(default=300, ge=0, le=2000)
    silence_duration_ms: int = Field(default=500, ge=100, le=5000)
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    idle_timeout_ms: int | None = None

    @property
    def silence_s(self) -> float:
        return EAGERNESS_SILENCE_S[self.eagerness] if self.type == "semantic_vad" else self.silence_duration_ms / 1000

    def shown(self) -> dict[str, object]:
        """Return the fields that are sent to a client."""
        if self.type == "semantic_vad":
            return {"type": self.type, "eagerness": self.eagerness}
        fields = ("type", "threshold", "prefix_padding_ms", "silence_duration_ms")
        return {**self.model_dump(include=set(fields)), "idle_timeout_ms": None}


class Transcription(Lenient):
    model: str | None = None
    language: str | None = None
    languages: list[str] | None = Field(default=None, max_length=8)
    prompt: str | None = Field(default=None, max_length=10_000)
    keywords: list[str] | None = Field(default=None, max_length=1000)
    delay: str | None = None

    def spoken(self, path: str = "") -> SpokenLanguages:
        """Return the languages that may be spoken. Raises `InvalidRequest`; `path` leads to this object."""
        name, texts = ("language", [self.language]) if self.language else ("languages", self.languages or [])
        return SpokenLanguages.of([known_code(text, f"{path}.{name}") for text in texts if language_code(text) != ANY])


class AudioInput(Lenient):
    format: AudioFormat | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None


class Audio(Lenient):
    input: AudioInput | None = None


class Session(Lenient):
    type: str = "transcription"
    audio: Audio | None = None
    include: list[str] | None = None


class BetaSession(Lenient):
    input_audio_format: Literal["pcm16", "g711_ulaw", "g711_alaw"] | None = None
    input_audio_transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None
    include: list[str] | None = None


class Append(Lenient):
    audio: str


DEFAULT_FORMAT, DEFAULT_TRANSCRIPTION, DEFAULT_TURN_DETECTION = AudioFormat(), Transcription(), TurnDetection()


@dataclass(frozen=True)
class SessionOptions:
    """The options of a transcription session; `turn_detection` is None where the client ends utterances itself."""

    format: AudioFormat = DEFAULT_FORMAT
    transcription: Transcription = DEFAULT_TRANSCRIPTION
    turn_detection: TurnDetection | None = DEFAULT_TURN_DETECTION
    include: tuple[str, ...] = ()

    def updated(self, session: Session) -> "SessionOptions":
        """Return the options with what a client's `session` object sets. Raises `InvalidRequest`."""
        if session.type != "transcription":
            raise InvalidRequest("This server has transcription sessions only.", param="session.type")
        given = session.audio.input if session.audio is not None else None
        options = self if given is None else self._with_input(given, "session.audio.input")
        return options if session.include is None else replace(options, include=_checked_include(session.include))

    def updated_beta(self, session: BetaSession) -> "SessionOptions":
        """Return the same for the session object of the beta API."""
        fields: dict[str, Any] = {}
        if "input_audio_transcription" in session.model_fields_set:
            fields["transcription"] = session.input_audio_transcription
        if "turn_detection" in session.model_fields_set:
            fields["turn_detection"] = session.turn_detection
        if session.input_audio_format is not None:
            fields["format"] = AudioFormat.model_validate({"type": BETA_FORMATS[session.input_audio_format]})
        given = AudioInput.model_construct(_fields_set=set(fields), **fields)
        options = self._with_input(given, "session", "input_audio_transcription")
        return options if session.include is None else replace(options, include=_checked_include(session.include))

    def _with_input(self, given: AudioInput, path: str, transcription_name: str = "transcription") -> "SessionOptions":
        options = self
        if given.format is not None:
            options = replace(options, format=given.format)
        if given.transcription is not None:
            asked = given.transcription
            if asked.delay is not None:
                raise InvalidRequest("The delay of text cannot be chosen.", param=f"{path}.{transcription_name}.delay")
            transcription = options.transcription.model_copy(update=asked.model_dump(exclude_unset=True))
            transcription.spoken(f"{path}.{transcription_name}")
            options = replace(options, transcription=transcription)
        if "turn_detection" in given.model_fields_set:
            detection = given.turn_detection
            if detection is not None and detection.idle_timeout_ms is not None:
                raise InvalidRequest("A timeout of silence is not supported.", param=f"{path}.turn_detection.idle_timeout_ms")
            options = replace(options, turn_detection=detection)
        return options

    def voice(self) -> VoiceOptions:
        """Return the rules of utterances in the engine's terms."""
        if self.turn_detection is None:
            return VoiceOptions(silence_s=MANUAL_SILENCE_S)
        detection = self.turn_detection
        return VoiceOptions(detection.threshold, detection.prefix_padding_ms / 1000, detection.silence_s)

    def live_request(self, client: str) -> LiveRequest:
        """Return the request to the engine."""
        asked = self.transcription
        spoken = asked.spoken()
        task = SpeechTask(
            DEFAULT_INSTRUCTION,
            SamplingOptions(logprobs=0 if LOGPROBS in self.include else None),
            language=spoken.language,
            languages=spoken.languages,
            prompt=asked.prompt or "",
            keywords=tuple(asked.keywords or ()),
        )
        return LiveRequest("", task, client, voice=self.voice())


def read_object(text: str) -> dict[str, Any]:
    """Return the JSON object of a text frame. Raises `InvalidRequest`."""
    try:
        content: Any = from_json(text, allow_inf_nan=False)
    except ValueError:
        raise InvalidRequest("The message is not valid JSON.") from None
    if not isinstance(content, dict) or not isinstance(content.get("type"), str):
        raise InvalidRequest("A message is a JSON object with a type.", param="type")
    return content


def parse(model: type[Parsed], content: object, path: str = "") -> Parsed:
    """Return an object as a `model`. Raises `InvalidRequest` for the first wrong field; `path` leads to the object."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        kind, steps = first_fault(error)
        place = ".".join([*([path] if path else []), *map(str, steps)])
        if kind == "missing":
            raise InvalidRequest(f"The field {place} is missing.", param=place) from None
        wanted = expected(_schema_at({"properties": inlined_schemas(model)}, steps))
        raise InvalidRequest(f"{place or 'The message'} has to be {wanted}.", param=place or None) from None


def _schema_at(schema: dict[str, Any], steps: Sequence[int | str]) -> dict[str, Any]:
    """Return the schema of the field to which `steps` lead."""
    for step in steps:
        schema = next(kind for kind in schema.get("anyOf", [schema]) if "properties" in kind or "items" in kind)
        schema = schema["items"] if isinstance(step, int) else schema["properties"][step]
    return schema


def _checked_include(include: Sequence[str]) -> tuple[str, ...]:
    if unknown := [name for name in include if name != LOGPROBS]:
        raise InvalidRequest(f"{unknown[0][:64]!r} cannot be included.", param="session.include")
    return tuple(include)
