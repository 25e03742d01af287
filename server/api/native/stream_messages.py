"""What `/v1/stream` tells its clients: one JSON object per text frame, and the close code after the last one."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from server.api.native.schema import ErrorReply, InstructReply, SpeculationReply, UsageReply, WordReply, instruct_reply
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
from server.errors import NotReady, Overloaded, ServeError, SessionIdle, SessionTooLong
from server.observability.live import Outcome

MAX_FRAME_BYTES = 256 * 1024
NORMAL, POLICY, SERVER_ERROR, RESTART, TRY_AGAIN = 1000, 1008, 1011, 1012, 1013


@dataclass(frozen=True)
class CloseReason:
    """How a session ends: the error that the client is told first, and the close code, which is None where nobody reads it."""

    outcome: Outcome
    close_code: int | None = None
    error: ServeError | None = None


def farewell_of(error: ServeError) -> CloseReason:
    """The end of a session because of this error."""
    match error:
        case SessionIdle():
            return CloseReason("idle", POLICY, error)
        case SessionTooLong():
            return CloseReason("too_long", POLICY, error)
        case Overloaded():
            return CloseReason("overloaded", TRY_AGAIN, error)
        case NotReady():
            return CloseReason("not_ready", TRY_AGAIN, error)
        case ServeError(status=status) if status < 500:
            return CloseReason("client_error", POLICY, error)
        case _:
            return CloseReason("server_error", SERVER_ERROR, error)


class _Event(BaseModel):
    def frame(self) -> str:
        """The frame's content."""
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
    start_s: float


class PartialEvent(_Event):
    type: Literal["partial"] = "partial"
    utterance: int
    stable: str
    tail: str
    start_s: float
    stable_end_s: float
    end_s: float


class FinalEvent(_Event):
    type: Literal["final"] = "final"
    utterance: int
    text: str
    finish_reason: FinishReason
    start_s: float
    end_s: float
    words: list[WordReply] | None
    usage: UsageReply
    times_ms: dict[str, float]
    speculation: SpeculationReply


class DeltaEvent(_Event):
    type: Literal["delta"] = "delta"
    delta: str


class FlushedEvent(_Event):
    type: Literal["flushed"] = "flushed"
    id: str


class EndedEvent(_Event):
    type: Literal["ended"] = "ended"
    audio_s: float
    basis: Basis
    sections: int
    answer: InstructReply | None


class ErrorEvent(ErrorReply):
    type: Literal["error"] = "error"
    fatal: bool
    utterance: int | None = None

    def frame(self) -> str:
        """The frame's content."""
        # An error's empty fields belong to its shape.
        return self.model_dump_json(exclude={"utterance"} if self.utterance is None else None)


def error_event(request_id: str, error: ServeError, *, fatal: bool, utterance: int | None = None) -> ErrorEvent:
    fields = {**error.body(), "request_id": request_id, "fatal": fatal, "utterance": utterance}
    return ErrorEvent.model_validate(fields)


def event_frame(event: LiveEvent, request_id: str) -> str:
    """The content of the frame for an event of the engine. Raises `ValueError` for one that no client is told of."""
    match event:
        case SpeechStarted(utterance=utterance, start_s=start_s):
            return SpeechStartedEvent(utterance=utterance, start_s=seconds(start_s)).frame()
        case Partial():
            return _partial(event).frame()
        case UtteranceDone():
            return _final(event).frame()
        case Problem(error=error, utterance=utterance):
            return error_event(request_id, error, fatal=False, utterance=utterance).frame()
        case Flushed(marker=marker):
            return FlushedEvent(id=marker).frame()
        case Delta(text=text):
            return DeltaEvent(delta=text).frame()
        case Ended():
            return _ended(event).frame()
        case _:
            raise ValueError(f"{type(event).__name__} is not for clients")


def seconds(value_s: float) -> float:
    """As a client reads them."""
    return round(value_s, 3)


def _reply(id: str, done: Done, audio_s: float) -> InstructReply:
    # There are words where they were asked for.
    return instruct_reply(id, done, audio_s, timestamps="words")


def _partial(event: Partial) -> PartialEvent:
    return PartialEvent(
        utterance=event.utterance,
        stable=event.stable,
        tail=event.tail,
        start_s=seconds(event.start_s),
        stable_end_s=seconds(event.stable_end_s),
        end_s=seconds(event.end_s),
    )


def _final(event: UtteranceDone) -> FinalEvent:
    reply = _reply(event.request_id, event.done, event.end_s - event.start_s)
    return FinalEvent(
        utterance=event.utterance,
        text=reply.text,
        finish_reason=reply.finish_reason,
        start_s=seconds(event.start_s),
        end_s=seconds(event.end_s),
        words=reply.words,
        usage=reply.usage,
        times_ms=reply.times_ms,
        speculation=reply.speculation,
    )


def _ended(event: Ended) -> EndedEvent:
    answer = None if event.answer is None else _reply(event.request_id, event.answer, event.audio_s)
    return EndedEvent(audio_s=seconds(event.audio_s), basis=event.basis, sections=event.sections, answer=answer)
