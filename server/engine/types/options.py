"""Options of a request: priority, sampling, constraint, draft policy, and the rules by which live audio is cut."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

DraftPolicy = Literal["exact", "relaxed", "off"]

WordTimes = Literal["none", "if_known", "required"]
"""Whether the times of words are wanted: not at all, where the model can tell them, or else there is no answer."""

ConstraintKind = Literal["json_schema", "regex", "choice"]


class Priority(IntEnum):
    """Lower runs first. Speakers wait for `LIVE` answers, and read `PARTIAL` text meanwhile."""

    LIVE = 0
    PARTIAL = 1
    INTERACTIVE = 2
    BATCH = 3


@dataclass(frozen=True)
class Constraint:
    """A pattern that an answer has to match: a `json_schema` or a `choice` (an array of strings), as JSON, or a `regex`."""

    kind: ConstraintKind
    grammar: str


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen, in the order of the fields: penalties, temperature, top-k, top-p.

    `temperature` 0 is greedy; `seed` makes sampled text repeatable whatever else runs. `top_k` 0 means all. The answer ends
    before the first of the `stop` strings. `logprobs` n asks for each token's log-probability and the n best (None: for none).
    Only tokens that a `constraint` allows are chosen from.
    """

    max_tokens: int = 256
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    seed: int | None = None
    constraint: Constraint | None = None


Scope = Literal["utterance", "recording"]


@dataclass(frozen=True)
class VoiceOptions:
    """The rules by which utterances begin and end.

    Audio is speech if the voice detector gives it at least `threshold`. An utterance includes `prefix_padding_s` before its
    speech, ends after `silence_s` without speech, and is cut at its likeliest pause before it gets longer than `max_utterance_s`.
    """

    threshold: float = 0.5
    prefix_padding_s: float = 0.3
    silence_s: float = 0.5
    max_utterance_s: float = 15.0
