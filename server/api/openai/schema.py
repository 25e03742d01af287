"""Replies and events in OpenAI's shapes. A field that is not set is not sent; a field that is set to null is."""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from server.engine.types.events import Done, TokenLogprob, Usage
from server.errors import ServeError

DONE = "[DONE]"


class _Sent(BaseModel):
    def to_json(self) -> str:
        """Return the JSON that is sent."""
        return self.model_dump_json(exclude_unset=True)


class InputTokenDetails(_Sent):
    text_tokens: int
    audio_tokens: int


class TokenUsage(_Sent):
    type: Literal["tokens"]
    input_tokens: int
    input_token_details: InputTokenDetails
    output_tokens: int
    total_tokens: int


class DurationUsage(_Sent):
    type: Literal["duration"]
    seconds: int


class Language(_Sent):
    code: str


class TranscriptToken(_Sent):
    token: str
    logprob: float
    bytes: list[int]


class TranscriptReply(_Sent):
    """The reply in the format `json`; a translation has no languages."""

    text: str
    languages: list[Language] | None = None
    logprobs: list[TranscriptToken] | None = None
    usage: TokenUsage | None = None
    warnings: list[str] | None = None


class WordTime(_Sent):
    word: str
    start: float
    end: float


class TranscriptSegment(_Sent):
    """`tokens` is always empty and `no_speech_prob` 0: the engine knows neither."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class VerboseReply(_Sent):
    """The reply in the format `verbose_json`. `language` is an English name in lower case."""

    task: Literal["transcribe", "translate"]
    language: str
    duration: float
    text: str
    words: list[WordTime] | None = None
    segments: list[TranscriptSegment] | None = None
    usage: DurationUsage
    warnings: list[str] | None = None


class TranscriptDelta(_Sent):
    type: Literal["transcript.text.delta"]
    delta: str
    logprobs: list[TranscriptToken] | None = None


class TranscriptDone(TranscriptReply):
    """The end of a stream. In the format `verbose_json` the fields of that are in it too."""

    type: Literal["transcript.text.done"]
    language: str | None = None
    duration: float | None = None
    words: list[WordTime] | None = None
    segments: list[TranscriptSegment] | None = None


class PromptTokensDetails(_Sent):
    audio_tokens: int
    text_tokens: int
    cached_tokens: int


class CompletionUsage(_Sent):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChunkDelta(_Sent):
    role: Literal["assistant"] | None = None
    content: str | None = None


class TopToken(_Sent):
    token: str
    bytes: list[int]
    logprob: float


class ChosenToken(TopToken):
    top_logprobs: list[TopToken]


class ChoiceLogprobs(_Sent):
    content: list[ChosenToken]
    refusal: None = None


class ChunkChoice(_Sent):
    index: int
    delta: ChunkDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Chunk(_Sent):
    """A piece of a streamed answer: OpenAI's of a chat, or vLLM's of a transcript."""

    id: str
    object: Literal["chat.completion.chunk", "transcription.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    warnings: list[str] | None = None


class AssistantMessage(_Sent):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class CompletionChoice(_Sent):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class Completion(_Sent):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage
    service_tier: str | None = None
    system_fingerprint: None = None
    warnings: list[str] | None = None


def finish_reason(done: Done) -> Literal["stop", "length"]:
    return "length" if done.finish_reason == "length" else "stop"


def token_usage(usage: Usage) -> TokenUsage:
    prompt = usage.audio_frames + usage.text_tokens
    return TokenUsage(
        type="tokens",
        input_tokens=prompt,
        input_token_details=InputTokenDetails(text_tokens=usage.text_tokens, audio_tokens=usage.audio_frames),
        output_tokens=usage.output_tokens,
        total_tokens=prompt + usage.output_tokens,
    )


def duration_usage(audio_s: float) -> DurationUsage:
    return DurationUsage(type="duration", seconds=math.ceil(audio_s))


def completion_usage(usage: Usage) -> CompletionUsage:
    prompt = usage.audio_frames + usage.text_tokens
    details = PromptTokensDetails(
        audio_tokens=usage.audio_frames, text_tokens=usage.text_tokens, cached_tokens=usage.cached_tokens
    )
    return CompletionUsage(
        prompt_tokens=prompt,
        completion_tokens=usage.output_tokens,
        total_tokens=prompt + usage.output_tokens,
        prompt_tokens_details=details,
    )


def completion_usage_so_far(tokens: int) -> CompletionUsage:
    """Return the usage in the midst of a stream, when that of the prompt is not known."""
    details = PromptTokensDetails(audio_tokens=0, text_tokens=0, cached_tokens=0)
    return CompletionUsage(prompt_tokens=0, completion_tokens=tokens, total_tokens=tokens, prompt_tokens_details=details)


def transcript_tokens(logprobs: Sequence[TokenLogprob]) -> list[TranscriptToken]:
    return [TranscriptToken(token=_text(each.bytes), logprob=each.logprob, bytes=list(each.bytes)) for each in logprobs]


def choice_logprobs(logprobs: Sequence[TokenLogprob]) -> ChoiceLogprobs:
    return ChoiceLogprobs(
        content=[
            ChosenToken(**dict(_top_token(each.bytes, each.logprob)), top_logprobs=[_top_token(*likely) for likely in each.top])
            for each in logprobs
        ],
        refusal=None,
    )


def error_content(error: ServeError, request_id: str) -> str:
    """Return the content of an event for an error, in the shape of all errors."""
    return _ErrorEvent(type="error", request_id=request_id, **error.body()).to_json()


class _ErrorEvent(_Sent):
    type: Literal["error"]
    error: dict[str, str | None]
    request_id: str


def _top_token(content: bytes, logprob: float) -> TopToken:
    return TopToken(token=_text(content), bytes=list(content), logprob=logprob)


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")
