"""The replies of the native API as they are sent: the whole reply, and the events of a streamed one."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from server.api.formats import ReplyFormat, srt, vtt
from server.engine.types.events import Basis, Done, FinishReason, Segment, TokenLogprob, Word
from server.errors import ServeError


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
    language: str | None = Field(None, description="The code of the language that was spoken, where the model tells it.")
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


def instruct_reply(
    id: str,
    done: Done,
    audio_s: float,
    segments: Sequence[Segment] | None = None,
    basis: Basis | None = None,
    sections: int | None = None,
    warnings: Sequence[str] = (),
    *,
    with_words: bool = False,
) -> InstructReply:
    """Return the reply for an answer, with its `segments`, and with its words, if it has any.

    `basis` and `sections` are those of long audio, `warnings` those of its file.
    """
    usage, speculation = done.usage, done.speculation
    return InstructReply(
        id=id,
        text=done.text,
        finish_reason=done.finish_reason,
        language=done.language,
        usage=UsageReply(
            audio_frames=usage.audio_frames,
            text_tokens=usage.text_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.audio_frames + usage.text_tokens + usage.output_tokens,
            cached_tokens=usage.cached_tokens,
        ),
        audio_s=round(audio_s, 3),
        times_ms=done.times.as_milliseconds(),
        speculation=SpeculationReply(
            drafted=speculation.drafted, accepted=speculation.accepted, llm_passes=speculation.llm_passes
        ),
        logprobs=None if done.logprobs is None else chosen_tokens(done.logprobs),
        segments=None if segments is None else segment_replies(segments),
        words=word_replies(done.words) if with_words and done.words is not None else None,
        basis=basis,
        sections=sections,
        warnings=list(warnings) or None,
    )


def channels_reply(id: str, replies: Sequence[InstructReply]) -> ChannelsReply:
    """Return the reply that holds those about each channel."""
    sums = {name: sum(getattr(reply.usage, name) for reply in replies) for name in UsageReply.model_fields}
    longest_s = max(reply.audio_s for reply in replies)
    return ChannelsReply(id=id, audio_s=longest_s, usage=UsageReply(**sums), channels=list(replies))


def reply_body(reply: InstructReply, segments: Sequence[Segment], format: ReplyFormat) -> str:
    """Return the body of a reply in a format; `segments` are those of its text, for subtitles."""
    match format:
        case "json":
            return reply.model_dump_json(exclude_none=True)
        case "text":
            return reply.text
        case "srt":
            return srt(segments)
        case "vtt":
            return vtt(segments)


def done_event(reply: InstructReply) -> DoneEvent:
    return DoneEvent(**dict(reply))


def error_event(request_id: str, error: ServeError) -> ErrorEvent:
    return ErrorEvent.model_validate({**error.body(), "request_id": request_id})


def chosen_tokens(logprobs: Sequence[TokenLogprob]) -> list[ChosenToken]:
    """Return the tokens in the reply's form."""
    return [
        ChosenToken(**_likely(token.bytes, token.logprob).__dict__, top=[_likely(*likely) for likely in token.top])
        for token in logprobs
    ]


def segment_replies(segments: Sequence[Segment]) -> list[SegmentReply]:
    """Return the segments in the reply's form."""
    return [SegmentReply(start_s=round(each.start_s, 3), end_s=round(each.end_s, 3), text=each.text) for each in segments]


def word_replies(words: Sequence[Word]) -> list[WordReply]:
    """Return the words in the reply's form."""
    return [WordReply(word=each.text, start_s=round(each.start_s, 3), end_s=round(each.end_s, 3)) for each in words]


def _likely(content: bytes, logprob: float) -> LikelyToken:
    return LikelyToken(token=content.decode("utf-8", errors="replace"), bytes=list(content), logprob=logprob)
