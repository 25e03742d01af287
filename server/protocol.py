"""What the native API says on the wire: the reply's models, and the limits of every form field."""

import re
from typing import Literal

from pydantic import BaseModel, Field

from server.errors import AudioTooShort, InvalidInstruction, InvalidRequest
from server.form import Form
from server.request import Done, FinishReason, SamplingOptions
from server.settings import Settings

MAX_TEMPERATURE = 2.0
MAX_SEED = 2**63 - 1
INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", re.ASCII)


class UsageReply(BaseModel):
    audio_frames: int = Field(description="Prompt positions taken by the audio.")
    text_tokens: int = Field(description="Prompt positions taken by the instruction and the template.")
    output_tokens: int = Field(description="Tokens generated.")
    total_tokens: int = Field(description="The sum of the other three.")


class InstructReply(BaseModel):
    id: str
    text: str
    finish_reason: FinishReason = Field(description="`stop`: the model ended; `length`: `max_tokens` did; `no_speech`: silence.")
    usage: UsageReply
    audio_s: float = Field(description="Seconds of audio.")
    times_ms: dict[str, float] = Field(
        description="Milliseconds per stage, and `total_ms` from the request's start to its answer."
    )


class ErrorDetail(BaseModel):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str = Field(description="Stable: clients may branch on it.")


class ErrorReply(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail
    request_id: str


def instruct_reply(id: str, done: Done, audio_s: float) -> InstructReply:
    """The reply of a request that was answered."""
    usage = done.usage
    return InstructReply(
        id=id,
        text=done.text,
        finish_reason=done.finish_reason,
        usage=UsageReply(
            audio_frames=usage.audio_frames,
            text_tokens=usage.text_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.audio_frames + usage.text_tokens + usage.output_tokens,
        ),
        audio_s=round(audio_s, 3),
        times_ms=done.times.as_milliseconds(),
    )


def parse_form(form: Form, settings: Settings) -> tuple[bytes, str, SamplingOptions]:
    """Audio bytes, instruction and sampling options, every one within its limits. Raises `InvalidRequest`."""
    if form.audio is None:
        raise InvalidRequest("The field audio is missing.", param="audio")
    if not form.audio:
        raise AudioTooShort("The audio is empty.", param="audio")
    sampling = SamplingOptions(
        max_tokens=_integer(form, "max_tokens", 1, settings.max_tokens_limit) or settings.default_max_tokens,
        temperature=_number(form, "temperature", MAX_TEMPERATURE) or 0.0,
        seed=_integer(form, "seed", 0, MAX_SEED),
    )
    return form.audio, _instruction(form, settings.max_instruction_characters), sampling


def _instruction(form: Form, max_characters: int) -> str:
    text = form.texts.get("instruction")
    if text is None:
        raise InvalidInstruction("The field instruction is missing.", param="instruction")
    if not text.strip():
        raise InvalidInstruction("The instruction is empty.", param="instruction")
    if len(text) > max_characters:
        raise InvalidInstruction(f"The instruction is longer than {max_characters} characters.", param="instruction")
    if "\0" in text:
        raise InvalidInstruction("The instruction holds a NUL character.", param="instruction")
    return text


def _integer(form: Form, name: str, low: int, high: int) -> int | None:
    text = form.texts.get(name)
    if text is None:
        return None
    if not INTEGER.fullmatch(text) or not low <= int(text) <= high:
        raise InvalidRequest(f"{name} has to be a whole number from {low} to {high}.", param=name)
    return int(text)


def _number(form: Form, name: str, high: float) -> float | None:
    text = form.texts.get(name)
    if text is None:
        return None
    if not NUMBER.fullmatch(text) or not 0 <= float(text) <= high:
        raise InvalidRequest(f"{name} has to be a number from 0 to {high:g}.", param=name)
    return float(text)
