"""The shapes of the native API's replies: the whole reply, the events of a streamed one, and errors."""

from typing import Literal

from pydantic import BaseModel, Field

from server.engine.types.events import Basis, FinishReason


class UsageReply(BaseModel):
    audio_frames: int = Field(description="Prompt positions taken by the audio.")
    text_tokens: int = Field(description="Prompt positions taken by the instruction and the template.")
    output_tokens: int = Field(description="Tokens generated.")
    total_tokens: int = Field(description="The sum of the other three.")
    cached_tokens: int = Field(description="Prompt positions of these that came from the cache.")


class SpeculationReply(BaseModel):
    drafted: int = Field(description="Tokens that the draft proposed.")
    accepted: int = Field(description="Tokens of these that stand in the answer.")
    llm_passes: int = Field(description="Runs of the LLM in all.")


class LikelyToken(BaseModel):
    token: str = Field(description="Text of the token; U+FFFD stands for part of a character.")
    bytes: list[int]
    logprob: float = Field(description="Natural logarithm, under the model before penalties and temperature.")


class ChosenToken(LikelyToken):
    top: list[LikelyToken] = Field(description="The likeliest tokens in this place, best first.")


class WordReply(BaseModel):
    word: str = Field(description="With its punctuation.")
    start_s: float
    end_s: float


class SegmentReply(BaseModel):
    start_s: float
    end_s: float
    text: str


class InstructReply(BaseModel):
    id: str
    text: str
    finish_reason: FinishReason = Field(description="`stop`: the model ended; `length`: `max_tokens` did; `no_speech`: silence.")
    language: str | None = Field(None, description="The code of the language that was spoken, where the model knows it.")
    usage: UsageReply
    audio_s: float = Field(description="Seconds of audio.")
    times_ms: dict[str, float] = Field(
        description="Milliseconds per stage, and `total_ms` from the request's start to its answer."
    )
    speculation: SpeculationReply
    logprobs: list[ChosenToken] | None = Field(None, description="One entry per token, where the form asks for them.")
    segments: list[SegmentReply] | None = Field(None, description="The text as subtitles show it, where the form asks for it.")
    words: list[WordReply] | None = Field(None, description="When each word was said, where the form asks for it.")
    basis: Basis | None = Field(
        None,
        description="For audio that was cut at its pauses: the source of the answer. `utterances`: the answers to each, joined; "
        "`audio`: all of the speech; `transcript`: its transcript; `sections`: answers about parts of the transcript.",
    )
    sections: int | None = Field(None, description="For such audio: the number of parts that the answer was put together from.")
    warnings: list[str] | None = Field(None, description="What of the audio was missing or left out, if anything.")


class ChannelsReply(BaseModel):
    """The answers about the channels of one piece of audio."""

    id: str
    audio_s: float = Field(description="Seconds of audio of the longest channel.")
    usage: UsageReply = Field(description="The sums over the channels.")
    channels: list[InstructReply] = Field(description="One reply for each channel, in their order.")


class DeltaEvent(BaseModel):
    """More text of a streamed answer."""

    type: Literal["instruct.text.delta"] = "instruct.text.delta"
    delta: str
    logprobs: list[ChosenToken] | None = None


class DoneEvent(InstructReply):
    """The end of a streamed answer: the whole reply, whose text is that of the deltas joined."""

    type: Literal["instruct.text.done"] = "instruct.text.done"


class ErrorDetail(BaseModel):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str = Field(description="Stable: clients may branch on it.")


class ErrorReply(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail
    request_id: str


class ErrorEvent(ErrorReply):
    """The end of a streamed answer that failed after its beginning."""

    type: Literal["error"] = "error"
