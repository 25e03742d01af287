"""The messages of `/v1/stream`, one JSON object per text frame: those of clients, the events for them, and the close codes."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import from_json

from server.api.body import MAX_TEXT_BYTES
from server.api.call import Answer
from server.api.native.rest import instruct_reply
from server.api.native.schema import ErrorReply, InstructReply, SpeculationReply, UsageReply, WordReply
from server.api.options import VOICE, ClientMessage, Instruction, RequestOptions, VoiceFields, parse_message, with_limits
from server.engine.types.events import (
    Basis,
    Delta,
    Done,
    Ended,
    FinishReason,
    Flushed,
    LiveEvent,
    Partial,
    Problem,
    SpeechStarted,
    UtteranceDone,
)
from server.engine.types.options import Scope, VoiceOptions
from server.engine.types.requests import ChangeInstruction, EndOfAudio, Flush, LiveRequest
from server.errors import InvalidRequest, ServeError
from server.settings import Settings

MAX_FRAME_BYTES = 256 * 1024
DEFAULT_RATE_HZ = 16_000
START = "start"

Encoding = Literal["pcm16", "ogg_opus"]
# Rounded to milliseconds.
Seconds = Annotated[float, AfterValidator(lambda value_s: round(value_s, 3))]
# Given as JSON, and kept as the JSON text that a form has.
JsonText = Annotated[str, BeforeValidator(lambda value: json.dumps(value, ensure_ascii=False))]


class VoiceMessage(VoiceFields):
    """The limits of an utterance. `MessageReader` sets the limit and default of `max_utterance_ms`."""

    max_utterance_ms: int = 0

    def options(self) -> VoiceOptions:
        return replace(super().options(), max_utterance_s=self.max_utterance_ms / 1000)


class StartMessage(RequestOptions):
    """The first message of a session: the shared options, and those of live audio."""

    json_schema: JsonText | SkipJsonSchema[None] = None
    choice: JsonText | SkipJsonSchema[None] = None
    sample_rate_hz: Annotated[int, Field(ge=8000, le=48_000)] | SkipJsonSchema[None] = None
    encoding: Encoding = "pcm16"
    partials: bool = True
    words: bool = False
    scope: Scope = "utterance"
    voice: VoiceMessage

    @model_validator(mode="after")
    def _check_rate(self) -> "StartMessage":
        if self.encoding == "ogg_opus" and self.sample_rate_hz is not None:
            raise InvalidRequest("An Opus stream says its sample rate itself.", param="sample_rate_hz")
        return self

    def live_request(self, session_id: str, client: str) -> LiveRequest:
        """Return the request for a session of this id and client."""
        task = self.task("required" if self.words else "none")
        return LiveRequest(session_id, task, client, voice=self.voice.options(), scope=self.scope, partials=self.partials)


class FlushMessage(ClientMessage):
    """Ends the utterance that is going on."""

    id: str = Field(min_length=1, max_length=64)


class UpdateMessage(ClientMessage):
    """Changes the instruction for utterances from here on."""

    instruction: Instruction


class EndMessage(ClientMessage):
    """Ends the audio."""


class MessageReader:
    """Reads the messages of one server's clients. An utterance may last as long as the audio that its model takes at once.

    `max_audio_s` returns that by the model's name, and raises `ModelNotFound`.
    """

    def __init__(self, settings: Settings, max_audio_s: Callable[[str | None], float]) -> None:
        self._settings = settings
        self._max_audio_s = max_audio_s
        # By the longest audio of a model, of which there are few.
        self._starts: dict[float, type[StartMessage]] = {}
        self._models: dict[str, type[ClientMessage]] = {
            "flush": FlushMessage,
            "update": with_limits(UpdateMessage, settings),
            "end": EndMessage,
        }

    def _start_model(self, name: object) -> type[StartMessage]:
        """Return the form of the start of a session with the model of this name."""
        max_audio_s = self._max_audio_s(name if isinstance(name, str) else None)
        if max_audio_s not in self._starts:
            longest_s = min(VOICE.max_utterance_s, max_audio_s)
            limits = Field(round(longest_s * 1000), ge=2000, le=round(max_audio_s * 1000))
            voice = create_model("VoiceMessage", __base__=VoiceMessage, max_utterance_ms=(int, limits))
            start = create_model("StartMessage", __base__=StartMessage, voice=(voice, voice.model_validate({})))
            self._starts[max_audio_s] = with_limits(start, self._settings)
        return self._starts[max_audio_s]

    def read_start(self, text: str) -> StartMessage:
        """Return the first message of a session. Raises `InvalidRequest`."""
        kind, content = self._read_object(text)
        if kind != START:
            raise InvalidRequest(f"The first message has to be a start, before any {kind}.", param="type")
        return parse_message(self._start_model(content.get("model")), content, kind)

    def read(self, text: str) -> Flush | ChangeInstruction | EndOfAudio:
        """Return a message that follows the start. Raises `InvalidRequest`."""
        kind, content = self._read_object(text)
        if kind == START:
            raise InvalidRequest("The session has started already.", param="type")
        match parse_message(self._models[kind], content, kind):
            case FlushMessage(id=marker):
                return Flush(marker)
            case UpdateMessage(instruction=instruction):
                return ChangeInstruction(instruction)
        return EndOfAudio()

    def _read_object(self, text: str) -> tuple[str, dict[str, Any]]:
        """Return the type of the message in a text frame, and its other fields."""
        # Characters, of which there are no more than bytes.
        if len(text) > MAX_TEXT_BYTES:
            raise InvalidRequest(f"A message has at most {MAX_TEXT_BYTES} characters.")
        try:
            content: Any = from_json(text, allow_inf_nan=False)
        except ValueError:
            raise InvalidRequest("The message is not valid JSON.") from None
        kind = content.pop("type", None) if isinstance(content, dict) else None
        kinds = (START, *self._models)
        if kind not in kinds:
            raise InvalidRequest(f"A message is a JSON object whose type is one of {', '.join(kinds)}.", param="type")
        return kind, content


class _Event(BaseModel):
    """An event as it is sent. Fields of the same name are those of the engine's event."""

    model_config = ConfigDict(from_attributes=True)

    def frame(self) -> str:
        """Return the content of the event's frame."""
        return self.model_dump_json(exclude_none=True)


class SessionLimits(BaseModel):
    idle_timeout_s: float
    max_session_s: float
    max_frame_bytes: int


class ReadyEvent(_Event):
    type: Literal["ready"] = "ready"
    session_id: str
    sample_rate_hz: int
    encoding: str
    limits: SessionLimits


class SpeechStartedEvent(_Event):
    type: Literal["speech_started"] = "speech_started"
    utterance: int
    start_s: Seconds


class PartialEvent(_Event):
    type: Literal["partial"] = "partial"
    utterance: int
    stable: str
    tail: str
    start_s: Seconds
    stable_end_s: Seconds
    end_s: Seconds


class FinalEvent(_Event):
    type: Literal["final"] = "final"
    utterance: int
    text: str
    finish_reason: FinishReason
    language: str | None
    start_s: Seconds
    end_s: Seconds
    words: list[WordReply] | None
    usage: UsageReply
    times_ms: dict[str, float]
    speculation: SpeculationReply


class LiveDeltaEvent(_Event):
    type: Literal["delta"] = "delta"
    delta: str


class FlushedEvent(_Event):
    type: Literal["flushed"] = "flushed"
    id: str


class EndedEvent(_Event):
    type: Literal["ended"] = "ended"
    audio_s: Seconds
    basis: Basis
    sections: int
    answer: InstructReply | None


class LiveErrorEvent(ErrorReply):
    type: Literal["error"] = "error"
    fatal: bool
    utterance: int | None = None

    def frame(self) -> str:
        """Return the content of the event's frame."""
        # An error's empty fields belong to its shape.
        return self.model_dump_json(exclude={"utterance"} if self.utterance is None else None)


def live_error_event(request_id: str, error: ServeError, *, fatal: bool, utterance: int | None = None) -> LiveErrorEvent:
    fields = {**error.body(), "request_id": request_id, "fatal": fatal, "utterance": utterance}
    return LiveErrorEvent.model_validate(fields)


def event_frame(event: LiveEvent, request_id: str) -> str:
    """Return the content of the frame for an event of the engine. Raises `ValueError` for one that is not for clients."""
    match event:
        case SpeechStarted():
            return SpeechStartedEvent.model_validate(event).frame()
        case Partial():
            return PartialEvent.model_validate(event).frame()
        case UtteranceDone():
            return _final_event(event).frame()
        case Problem(error=error, utterance=utterance):
            return live_error_event(request_id, error, fatal=False, utterance=utterance).frame()
        case Flushed(marker=marker):
            return FlushedEvent(id=marker).frame()
        case Delta(text=text):
            return LiveDeltaEvent(delta=text).frame()
        case Ended():
            return _ended_event(event).frame()
        case _:
            raise ValueError(f"{type(event).__name__} is not for clients")


def _reply(done: Done, audio_s: float) -> InstructReply:
    # The answer has words only if the start asked for them.
    return instruct_reply(Answer(done, audio_s), "none" if done.words is None else "words")


def _final_event(event: UtteranceDone) -> FinalEvent:
    reply = _reply(event.done, event.end_s - event.start_s)
    shared = {name: getattr(reply, name) for name in FinalEvent.model_fields.keys() & InstructReply.model_fields.keys()}
    return FinalEvent(utterance=event.utterance, start_s=event.start_s, end_s=event.end_s, **shared)


def _ended_event(event: Ended) -> EndedEvent:
    answer = None if event.answer is None else _reply(event.answer, event.audio_s)
    return EndedEvent(audio_s=event.audio_s, basis=event.basis, sections=event.sections, answer=answer)
