"""The options of a request, described once: the form of `POST /v1/instruct` and the messages of `/v1/stream` are read by these
models, and the OpenAPI page is made from them.

Values are never converted: a number that came as JSON text, or a truth value in place of a number, is refused. A form has
nothing but text, so `parse_form` reads the text of each field by the type of that field first.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import from_json

from server.api.body import FILE_FIELD, PLAIN_NAME
from server.api.formats import SUBTITLES, ReplyFormat
from server.engine.types.options import (
    Constraint,
    ConstraintKind,
    DraftPolicy,
    Priority,
    SamplingOptions,
    VoiceOptions,
    WordTimes,
)
from server.engine.types.requests import SpeechTask
from server.errors import InvalidInstruction, InvalidRequest, UnknownField
from server.settings import Settings

VOICE = VoiceOptions()
DEFAULT_INSTRUCTION = "Transcribe the speech to text."

INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", re.ASCII)
AUDIO_SCHEMA = {"type": "string", "format": "binary", "description": "WAV, FLAC, OGG Vorbis, OGG Opus or MP3."}
SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingOptions) if field.name != "constraint")

Channels = Literal["mixed", "separate"]
Chunking = Literal["auto", "voice"]
Timestamps = Literal["none", "segments", "words"]

Message = TypeVar("Message", bound="ClientMessage")


def _check_instruction(text: str) -> str:
    if not text.strip():
        raise InvalidInstruction("The instruction is empty.", param="instruction")
    if "\0" in text:
        raise InvalidInstruction("The instruction holds a NUL character.", param="instruction")
    return text


class ClientMessage(BaseModel):
    """Fields that a client sends; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class VoiceFields(ClientMessage):
    """How live audio, or audio that is cut at its pauses, is cut."""

    threshold: float = Field(VOICE.threshold, ge=0.05, le=0.95)
    prefix_padding_ms: int = Field(round(VOICE.prefix_padding_s * 1000), ge=0, le=1000)
    silence_duration_ms: int = Field(round(VOICE.silence_s * 1000), ge=100, le=5000)

    def options(self) -> VoiceOptions:
        """Return the same in the engine's terms."""
        return VoiceOptions(
            threshold=self.threshold,
            prefix_padding_s=self.prefix_padding_ms / 1000,
            silence_s=self.silence_duration_ms / 1000,
        )


Instruction = Annotated[str, AfterValidator(_check_instruction)]
NotEmpty = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class SpokenLanguages:
    """The one language that is spoken, or several that may be; neither where the model is to find out among all."""

    language: str | None = None
    languages: tuple[str, ...] = ()

    @classmethod
    def of(cls, codes: Sequence[str], language: str | None = None) -> Self:
        """Return what these codes, some of which may be the same, mean, or the one `language` that a client names beside them.

        Raises `InvalidRequest` if that is none of several.
        """
        if language is not None:
            if codes and language not in codes:
                raise InvalidRequest("language is none of the languages.", param="language")
            return cls(language)
        different = tuple(dict.fromkeys(codes))
        return cls(languages=different) if len(different) > 1 else cls(next(iter(different), None))


ANY_LANGUAGE = SpokenLanguages()


class RequestOptions(ClientMessage):
    """The options that requests and live sessions share. `with_limits` adds the limits that the settings set."""

    instruction: Instruction
    model: Annotated[str, Field(min_length=1, max_length=128)] | SkipJsonSchema[None] = Field(
        None, description="A name that `/v1/models` lists; without one the server's default model answers."
    )
    max_tokens: int = Field(256, description="The longest answer in tokens.")
    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the likeliest token; above it, tokens are drawn.")
    top_k: int = Field(0, ge=0, le=1000, description="Draw among so many of the likeliest tokens; 0: among all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw among the fewest likeliest tokens that have this probability together."
    )
    repetition_penalty: float = Field(
        1.0,
        ge=0.5,
        le=2,
        description="Divides the scores above 0 of tokens that the answer already holds, and multiplies those below.",
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Subtracted from the scores of tokens that the answer already holds."
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | SkipJsonSchema[None] = Field(
        None, description="Repeats a drawn answer; without a seed every answer is drawn anew."
    )
    stop: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        [], max_length=4, description='The answer ends before the first of these strings; in a form a JSON array such as ["###"].'
    )
    json_schema: NotEmpty | SkipJsonSchema[None] = Field(
        None,
        description="The answer is compact JSON, valid under this JSON schema; at most one of json_schema, regex and choice.",
    )
    regex: NotEmpty | SkipJsonSchema[None] = Field(
        None, description="The answer as a whole matches this regular expression (no look-around, no back-references)."
    )
    choice: NotEmpty | SkipJsonSchema[None] = Field(
        None, description='The answer is one of these strings: a JSON array such as ["yes", "no"].'
    )
    language: Annotated[str, Field(min_length=1, max_length=16)] | SkipJsonSchema[None] = Field(
        None, description="The code of the language that is spoken, such as `en`; without it the model finds out."
    )
    languages: list[Annotated[str, Field(min_length=1, max_length=16)]] = Field(
        [], max_length=8, description="The codes of the languages that may be spoken, among which the model finds out."
    )
    prompt: str = Field(
        "",
        max_length=4000,
        description="Text that comes before what is spoken, to show spelling and style; of a long one the end counts.",
    )
    keywords: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        [], max_length=64, description='Names and terms that may be spoken; in a form a JSON array such as ["Qwen"].'
    )
    draft: DraftPolicy = Field(
        "exact",
        description="How the speech model's own draft may speed up the answer: `exact` never changes the answer, `relaxed`, for "
        "transcription only, keeps a draft that the LLM finds likely enough, `off` uses none.",
    )

    @model_validator(mode="after")
    def _check_constraints(self) -> Self:
        given = self._constraints()
        if len(given) > 1:
            raise InvalidRequest(f"An answer cannot follow more than one of {', '.join(given)}.", param=given[1])
        return self

    @model_validator(mode="after")
    def _check_languages(self) -> Self:
        SpokenLanguages.of(self.languages, self.language)
        return self

    @property
    def spoken(self) -> SpokenLanguages:
        """The languages that may be spoken."""
        return SpokenLanguages.of(self.languages, self.language)

    def _constraints(self) -> list[ConstraintKind]:
        return [kind for kind in get_args(ConstraintKind) if getattr(self, kind) is not None]

    @property
    def sampling(self) -> SamplingOptions:
        """How the tokens of the answer are chosen."""
        values = {name: value for name, value in self if name in SAMPLING_FIELDS and name != "stop"}
        constraint = next((Constraint(kind, getattr(self, kind)) for kind in self._constraints()), None)
        return SamplingOptions(**values, stop=tuple(self.stop), constraint=constraint)

    def task(self, word_times: WordTimes) -> SpeechTask:
        """Return the options in the engine's terms."""
        return SpeechTask(
            self.instruction,
            self.sampling,
            self.draft,
            word_times,
            self.spoken.language,
            self.spoken.languages,
            self.prompt,
            tuple(self.keywords),
        )


class InstructOptions(RequestOptions):
    """The options of `POST /v1/instruct`."""

    logprobs: Annotated[int, Field(ge=0, le=20)] | SkipJsonSchema[None] = Field(
        None, description="Adds the log-probability of every token, and so many of the likeliest in its place."
    )
    stream: bool = Field(False, description="`true` sends the text as it arises, in server-sent events.")
    priority: Literal["interactive", "batch"] = Field("interactive", description="`batch` waits while there is interactive work.")
    deadline_ms: Annotated[int, Field(ge=1, le=3_600_000)] | SkipJsonSchema[None] = Field(
        None, description="Milliseconds from the request's start after which the answer is worth nothing."
    )
    timestamps: Timestamps = Field(
        "none",
        description="Adds when it was said, for transcription only: `segments` as subtitles show them, or these and each of the "
        "`words`.",
    )
    format: ReplyFormat = Field(
        "json",
        description="How the reply is written: `json`, nothing but the `text`, or the text as subtitles, for transcription only.",
    )
    chunking: Chunking = Field(
        "auto",
        description="How audio is cut: `auto` not at all where the model takes it in one piece, and else at its pauses; `voice` "
        "always at its pauses, as live speech is.",
    )

    channels: Channels = Field(
        "mixed", description="`separate` answers each channel of the audio by itself; `mixed` all of them as one."
    )

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        if self.channels == "separate" and (self.stream or self.format != "json"):
            raise InvalidRequest("Separate channels are answered in json, and not in a stream.", param="channels")
        if self.stream and self.format != "json":
            raise InvalidRequest("A stream is written as json only.", param="format")
        if self.format == "text" and self.timestamps != "none":
            raise InvalidRequest("Plain text has no place for timestamps.", param="timestamps")
        return self

    @property
    def word_times(self) -> WordTimes:
        """Whether the reply needs the times of words: segments may be made without."""
        if self.timestamps == "words":
            return "required"
        return "if_known" if self.timestamps == "segments" or self.format in SUBTITLES else "none"

    @property
    def engine_priority(self) -> Priority:
        """The priority in the engine's terms."""
        return Priority.BATCH if self.priority == "batch" else Priority.INTERACTIVE


def with_limits(model: type[Message], settings: Settings) -> type[Message]:
    """Return `model` with the limits and defaults that the settings set for its `instruction` and `max_tokens`."""
    longest = Field(max_length=settings.max_instruction_characters)
    limited: dict[str, Any] = {"instruction": (Annotated[Instruction, longest], ...)}
    if "max_tokens" in model.model_fields:
        description = model.model_fields["max_tokens"].description
        limits = Field(settings.default_max_tokens, ge=1, le=settings.max_tokens_limit, description=description)
        limited["max_tokens"] = (int, limits)
    return create_model(model.__name__, __base__=model, __doc__=model.__doc__, **limited)


def parse_form(model: type[Message], texts: Mapping[str, str], lists: Mapping[str, Sequence[str]] | None = None) -> Message:
    """Return the fields of a form as a `model`; `lists` are those that came as several parts.

    Raises `InvalidRequest` for the first field that is wrong.
    """
    values = {name: _value_of(field_schemas(model).get(name, {}), text) for name, text in texts.items()}
    return parse_message(model, {**values, **{name: list(items) for name, items in (lists or {}).items()}}, "The form")


def list_fields(model: type[ClientMessage]) -> tuple[str, ...]:
    """Return the names of the fields that are lists."""
    return tuple(name for name, schema in field_schemas(model).items() if schema.get("type") == "array")


def parse_message(model: type[Message], values: Mapping[str, object], name: str) -> Message:
    """Return JSON values as a `model`. Raises `InvalidRequest` for the first wrong one; `name` names the message in errors."""
    for field, value in values.items():
        # A field that may be left out is None then, but null is no value.
        if value is None and field in model.model_fields:
            raise _invalid_value(model, field)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        kind, place = first_fault(error)
        raise _client_error(model, name, kind, place) from None


def first_fault(error: ValidationError) -> tuple[str, tuple[int | str, ...]]:
    """Return the kind and the place of the fault in the first wrong field, the deepest if the field may be of several kinds."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    same_field = [fault for fault in faults if fault["loc"][:1] == faults[0]["loc"][:1]]
    deepest = max(same_field, key=lambda fault: len(fault["loc"]))
    return deepest["type"], deepest["loc"]


def form_description(model: type[ClientMessage]) -> dict[str, Any]:
    """Return the request body of a form, for the OpenAPI page."""
    properties = {
        name: {key: value for key, value in schema.items() if value is not None} for name, schema in field_schemas(model).items()
    }
    schema = {
        "type": "object",
        "required": [FILE_FIELD, "instruction"],
        "additionalProperties": False,
        "properties": {FILE_FIELD: AUDIO_SCHEMA, **properties},
    }
    encoding = {name: {"contentType": "application/json"} for name, field in properties.items() if field["type"] == "array"}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema, "encoding": encoding}}}


@cache
def field_schemas(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each field."""
    properties: dict[str, dict[str, Any]] = model.model_json_schema()["properties"]
    return properties


def inlined_schemas(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of each field, without references."""
    definitions = model.model_json_schema().get("$defs", {})

    def inline(schema: Any) -> Any:
        if isinstance(schema, list):
            return [inline(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            return inline(definitions[schema["$ref"].rpartition("/")[2]])
        return {key: inline(value) for key, value in schema.items() if value is not None}

    return {name: inline(schema) for name, schema in field_schemas(model).items()}


def _value_of(schema: Mapping[str, Any], text: str) -> object:
    """Return what a form's text stands for by the schema of its field; text that stands for nothing stays text."""
    match schema.get("type"):
        case "integer" if INTEGER.fullmatch(text):
            return int(text)
        case "number" if NUMBER.fullmatch(text):
            return float(text)
        case "boolean":
            return {"true": True, "false": False}.get(text.lower(), text)
        case "array":
            try:
                value: object = from_json(text)
            except ValueError:
                return text
            return text if value is None else value
    return text


def _client_error(
    model: type[ClientMessage], name: str, kind: str, place: tuple[int | str, ...], path: str = ""
) -> InvalidRequest:
    """Return the message for the client about an error of pydantic's at this place, in a field behind `path`."""
    field = str(place[0])
    shown = f"{path}{field}"
    if field not in model.model_fields:
        known = ", ".join(model.model_fields)
        param = shown if PLAIN_NAME.fullmatch(field) else None
        return UnknownField(f"{name} has an unknown field; the fields are {known}.", param=param)
    annotation = model.model_fields[field].annotation
    for message in _messages_in(annotation):
        # The place of a fault in a field of several kinds names the kind.
        start = 1 if message is annotation else place.index(message.__name__) + 1 if message.__name__ in place else len(place)
        if rest := place[start:]:
            return _client_error(message, shown, kind, rest, f"{shown}.")
    if kind == "missing":
        missing = InvalidInstruction if field == "instruction" else InvalidRequest
        return missing(f"The field {shown} is missing.", param=shown)
    return _invalid_value(model, field, path)


def _messages_in(annotation: Any) -> Iterator[type[ClientMessage]]:
    """Yield the kinds of messages that a field with this annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, ClientMessage):
        yield annotation
    for part in get_args(annotation):
        yield from _messages_in(part)


def _invalid_value(model: type[ClientMessage], field: str, path: str = "") -> InvalidRequest:
    error = InvalidInstruction if field == "instruction" else InvalidRequest
    return error(f"{path}{field} has to be {expected(field_schemas(model)[field])}.", param=f"{path}{field}")


def expected(schema: Mapping[str, Any]) -> str:
    """Say in words what a field with this JSON schema accepts."""
    match schema:
        case {"enum": words}:
            return f"one of {', '.join(map(str, words))}"
        case {"type": "null"}:
            return "null"
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "integer", "minimum": low, "maximum": high}:
            return f"a whole number from {low} to {high}"
        case {"type": "number", "minimum": low, "maximum": high}:
            return f"a number from {low:g} to {high:g}"
        case {"type": "number", "exclusiveMinimum": low, "maximum": high}:
            return f"a number above {low:g} and up to {high:g}"
        case {"type": "array", "maxItems": most, "items": {"minLength": low, "maxLength": high}}:
            return f"a JSON array of up to {most} strings of {low} to {high} characters"
        case {"type": "array", "items": {"enum": words}}:
            return f"a list of any of {', '.join(words)}"
        case {"type": "array", "items": {"const": word}}:
            return f"a list that holds only {word}"
        case {"type": "array", "minItems": low, "maxItems": most}:
            return f"a list of {low} to {most} items"
        case {"type": "array", "maxItems": most}:
            return f"a list of up to {most} items"
        case {"type": "array"}:
            return "a list"
        case {"anyOf": kinds}:
            return " or ".join(expected(kind) for kind in kinds)
        case {"const": word}:
            return str(word)
        case {"type": "string", "maxLength": high}:
            return f"text of 1 to {high} characters"
        case {"type": "string", "minLength": _}:
            return "text that is not empty"
        case {"type": "string"}:
            return "text"
    return "a JSON object"
