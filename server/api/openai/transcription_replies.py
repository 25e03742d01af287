"""A transcript or a translation in OpenAI's formats: whole, in OpenAI's events, or in vLLM's chunks."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import Response

from server.api.call import Answer, StreamWriter
from server.api.formats import srt, vtt
from server.api.languages import language_name
from server.api.openai.schema import (
    DONE,
    Chunk,
    ChunkChoice,
    ChunkDelta,
    Language,
    TranscriptDelta,
    TranscriptDone,
    TranscriptReply,
    TranscriptSegment,
    VerboseReply,
    WordTime,
    completion_usage,
    completion_usage_so_far,
    duration_usage,
    error_content,
    finish_reason,
    token_usage,
    transcript_tokens,
)
from server.api.openai.transcription_options import Format
from server.engine.types.events import Segment, TokenLogprob, Word
from server.errors import ServeError

WARNINGS_HEADER = "x-warnings"
TEXT_TYPE = "text/plain"
JSON_TYPE = "application/json"

Task = Literal["transcribe", "translate"]
Granularity = Literal["word", "segment"]


@dataclass(frozen=True)
class TranscriptWriter(StreamWriter):
    """`ReplyWriter` and `StreamWriter` of transcripts.

    `language` is the one that was asked for, `into` that of a translation. `granularities` are of `verbose_json`.
    """

    request_id: str
    task: Task
    format: Format
    granularities: Sequence[Granularity] = ()
    logprobs: bool = False
    language: str | None = None
    into: str | None = None
    temperature: float = 0.0
    warnings: tuple[str, ...] = ()

    def reply(self, answer: Answer) -> Response:
        done = answer.done
        warnings = self._warnings(answer)
        headers = {WARNINGS_HEADER: " ".join(warnings)} if warnings else None
        match self.format:
            case "text":
                return Response(done.text, media_type=TEXT_TYPE, headers=headers)
            case "srt":
                return Response(srt(answer.segments), media_type=TEXT_TYPE, headers=headers)
            case "vtt":
                return Response(vtt(answer.segments), media_type=TEXT_TYPE, headers=headers)
            case "verbose_json":
                return Response(VerboseReply(**self._verbose_fields(answer)).to_json(), media_type=JSON_TYPE)
        return Response(TranscriptReply(**self._json_fields(answer)).to_json(), media_type=JSON_TYPE)

    def text_event(self, text: str, logprobs: Sequence[TokenLogprob]) -> str:
        extra = {"logprobs": transcript_tokens(logprobs)} if self.logprobs else {}
        return TranscriptDelta(type="transcript.text.delta", delta=text, **extra).to_json()

    def last_events(self, answer: Answer) -> Iterable[str]:
        verbose = self._verbose_fields(answer) if self.format == "verbose_json" else {}
        fields = {**verbose, **self._json_fields(answer)}
        fields.pop("task", None)
        yield TranscriptDone(type="transcript.text.done", **fields).to_json()
        yield DONE

    def error_event(self, error: ServeError) -> str:
        return error_content(error, self.request_id)

    def _json_fields(self, answer: Answer) -> dict[str, Any]:
        done = answer.done
        fields: dict[str, Any] = {"text": done.text}
        if self.task == "transcribe":
            fields["languages"] = [] if done.language is None else [Language(code=done.language)]
        if self.logprobs:
            fields["logprobs"] = transcript_tokens(done.logprobs or ())
        fields["usage"] = token_usage(done.usage)
        return fields | self.warning_fields(answer)

    def _verbose_fields(self, answer: Answer) -> dict[str, Any]:
        done = answer.done
        spoken = language_name(self.into or done.language or self.language)
        fields: dict[str, Any] = {"task": self.task, "language": spoken, "duration": round(answer.audio_s, 3), "text": done.text}
        if "word" in self.granularities:
            fields["words"] = [_word_time(word) for word in done.words or ()]
        if "segment" in (self.granularities or ("segment",)):
            fields["segments"] = verbose_segments(answer.segments, done.logprobs or (), self.temperature)
        fields["usage"] = duration_usage(answer.audio_s)
        return fields | self.warning_fields(answer)

    def warning_fields(self, answer: Answer) -> dict[str, Any]:
        """Return the field `warnings` if there are any."""
        warnings = self._warnings(answer)
        return {"warnings": list(warnings)} if warnings else {}

    def _warnings(self, answer: Answer) -> tuple[str, ...]:
        cut = ("The text is cut at its longest length in tokens.",) if answer.done.finish_reason == "length" else ()
        return (*self.warnings, *answer.warnings, *cut)


@dataclass
class ChunkWriter(StreamWriter):
    """`StreamWriter` of vLLM's chunks; `continuous` counts the tokens in each."""

    whole: TranscriptWriter
    id: str
    created_s: int
    model: str
    include_usage: bool
    continuous: bool
    tokens: int = 0

    def text_event(self, text: str, logprobs: Sequence[TokenLogprob]) -> str:
        self.tokens += len(logprobs)
        usage = {"usage": completion_usage_so_far(self.tokens)} if self.continuous else {}
        return self._chunk([ChunkChoice(index=0, delta=ChunkDelta(content=text), finish_reason=None)], **usage)

    def last_events(self, answer: Answer) -> Iterable[str]:
        usage = completion_usage(answer.done.usage)
        warnings = self.whole.warning_fields(answer)
        extra = {"usage": usage} if self.continuous else {}
        yield self._chunk(
            [ChunkChoice(index=0, delta=ChunkDelta(content=""), finish_reason=finish_reason(answer.done))], **extra, **warnings
        )
        if self.include_usage:
            yield self._chunk([], usage=usage)
        yield DONE

    def error_event(self, error: ServeError) -> str:
        return self.whole.error_event(error)

    def _chunk(self, choices: list[ChunkChoice], **more: Any) -> str:
        head = {"id": self.id, "object": "transcription.chunk", "created": self.created_s, "model": self.model}
        return Chunk.model_validate({**head, "choices": choices, **more}).to_json()


def verbose_segments(parts: Sequence[Segment], tokens: Sequence[TokenLogprob], temperature: float) -> list[TranscriptSegment]:
    """Return the segments of a text, whose tokens are `tokens`, in OpenAI's form."""
    shares = mean_logprobs([part.text for part in parts], tokens)
    return [
        TranscriptSegment(
            id=number,
            seek=round(part.start_s * 100),
            start=round(part.start_s, 3),
            end=round(part.end_s, 3),
            text=f" {part.text}",
            tokens=[],
            temperature=temperature,
            avg_logprob=logprob,
            compression_ratio=_compression_ratio(part.text),
            no_speech_prob=0.0,
        )
        for number, (part, logprob) in enumerate(zip(parts, shares, strict=True))
    ]


def mean_logprobs(texts: Sequence[str], tokens: Sequence[TokenLogprob]) -> list[float]:
    """Return the mean log-probability of the tokens of each text, 0 where there are none.

    The tokens are those of the texts in a row. A token belongs to the text in which its first byte that is no blank lies.
    """
    if not texts:
        return []
    sums, counts = [0.0] * len(texts), [0] * len(texts)
    lengths = [len("".join(text.split()).encode()) for text in texts]
    place, passed, end = 0, 0, lengths[0]
    for token in tokens:
        while place + 1 < len(texts) and passed >= end:
            place += 1
            end += lengths[place]
        sums[place] += token.logprob
        counts[place] += 1
        passed += len(b"".join(token.bytes.split()))
    return [round(total / count, 6) if count else 0.0 for total, count in zip(sums, counts, strict=True)]


def _compression_ratio(text: str) -> float:
    """Return how much smaller zlib makes a text, as Whisper measures loops."""
    content = text.encode()
    return round(len(content) / len(zlib.compress(content)), 4)


def _word_time(word: Word) -> WordTime:
    return WordTime(word=word.text, start=round(word.start_s, 3), end=round(word.end_s, 3))
