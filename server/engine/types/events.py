"""Events of a request, of which exactly one is terminal, and of a live session. Plain data.

Times of a live session are seconds of its own audio: 0 is its first sample. Utterances are numbered from 0, and their answers
come in that order.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.errors import ServeError

FinishReason = Literal["stop", "length", "no_speech"]

Basis = Literal["utterances", "audio", "transcript", "sections"]


@dataclass(frozen=True)
class Word:
    """One word of an answer with its punctuation, and the time at which it is spoken."""

    text: str
    start_s: float
    end_s: float

    @property
    def middle_s(self) -> float:
        """The middle of the word's time, which moves less between hypotheses than its ends do."""
        return (self.start_s + self.end_s) / 2


def shift_words(words: Sequence[Word], seconds: float) -> tuple[Word, ...]:
    """Return words that are spoken `seconds` later."""
    return tuple(Word(word.text, word.start_s + seconds, word.end_s + seconds) for word in words)


@dataclass(frozen=True)
class Segment:
    """A piece of an answer, such as a sentence or the text of an utterance, and the time at which it is spoken."""

    text: str
    start_s: float
    end_s: float


Alternative = tuple[bytes, float]
"""A token's bytes and its natural log-probability."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer with its natural log-probability under the model (before penalties and temperature), and the best
    ones in its place, as pairs of bytes and log-probability, best first."""

    bytes: bytes
    logprob: float
    top: tuple[Alternative, ...] = ()


@dataclass
class StageTimes:
    """Seconds spent per stage of one request; `queue_s` is waiting of any kind inside the engine."""

    audio_decode_s: float = 0.0
    features_s: float = 0.0
    queue_s: float = 0.0
    encode_s: float = 0.0
    adapter_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    detokenise_s: float = 0.0
    total_s: float = 0.0

    def as_milliseconds(self) -> dict[str, float]:
        """Return the times keyed `<stage>_ms`, rounded to a microsecond."""
        return {name.removesuffix("_s") + "_ms": round(value * 1000, 3) for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Usage:
    """Prompt positions by kind, how many of them came from the prefix cache, and generated tokens."""

    audio_frames: int
    text_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Speculation:
    """The effect of the draft on one request: tokens proposed and accepted, and LLM passes (prefill and decode) in all."""

    drafted: int = 0
    accepted: int = 0
    llm_passes: int = 0


@dataclass(frozen=True)
class Delta:
    """A further piece of text, which never splits a character, and the tokens that completed it (if asked for)."""

    request_id: str
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Done:
    """Terminal: the whole text. Concatenated deltas equal `text`; so do their logprobs equal `logprobs`.

    `words` is None where they were not asked for, and where the model cannot tell their times. `language` is the code of the one
    that was spoken, None where the model does not tell.
    """

    request_id: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    times: StageTimes
    speculation: Speculation = Speculation()
    logprobs: tuple[TokenLogprob, ...] | None = None
    words: tuple[Word, ...] | None = None
    language: str | None = None


@dataclass(frozen=True)
class Failed:
    """Terminal: the request ended without an answer."""

    request_id: str
    error: ServeError


Event = Delta | Done | Failed


@dataclass(frozen=True)
class Listened:
    """Audio up to here has been listened to and is no longer waiting."""

    request_id: str
    audio_s: float


@dataclass(frozen=True)
class SpeechStarted:
    """An utterance begins; `start_s` is where its audio starts, padding included."""

    request_id: str
    utterance: int
    start_s: float


@dataclass(frozen=True)
class Partial:
    """The text of an utterance up to `end_s`, as a transcript, whatever the instruction.

    It is `stable + tail`. Every later partial of this utterance begins with `stable`, which ends at `stable_end_s`; `tail` may
    change. The answer comes from all of the utterance and may differ from both.
    """

    request_id: str
    utterance: int
    stable: str
    tail: str
    start_s: float
    stable_end_s: float
    end_s: float


@dataclass(frozen=True)
class UtteranceDone:
    """The answer to one utterance, which lay between `start_s` and `end_s`. The words' times are the session's."""

    request_id: str
    utterance: int
    start_s: float
    end_s: float
    done: Done


@dataclass(frozen=True)
class Problem:
    """An error with one utterance or with an input; the session goes on."""

    request_id: str
    error: ServeError
    utterance: int | None = None


@dataclass(frozen=True)
class Flushed:
    """All audio before the `Flush` with this marker is answered."""

    request_id: str
    marker: str


@dataclass(frozen=True)
class Ended:
    """Terminal: everything is answered.

    Under the scope `recording`, `answer` is about all of it. Its `basis` is the speech itself (`audio`), or, if that does not
    fit the LLM, the joined transcript, or answers about `sections` of that. Its text came as `Delta`s too.
    """

    request_id: str
    audio_s: float
    basis: Basis = "utterances"
    sections: int = 1
    answer: Done | None = None


LiveEvent = Listened | SpeechStarted | Partial | UtteranceDone | Problem | Flushed | Delta | Ended | Failed
