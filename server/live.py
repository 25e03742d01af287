"""Live audio: what crosses between the edge and the engine for one session. Plain data, like `server.request`.

A session is a `LiveRequest`, a series of `LiveInput`, and the `LiveEvent`s that come of them. Times are seconds of the session's
own audio: 0 is its first sample. Utterances are numbered from 0, and their answers come in that order.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from server.errors import ServeError
from server.request import Delta, Done, DraftPolicy, Failed, Priority, SamplingOptions

Scope = Literal["utterance", "recording"]
Basis = Literal["utterances", "audio", "transcript", "sections"]


@dataclass(frozen=True)
class VoiceOptions:
    """When an utterance begins and ends.

    Speech is what the voice detector gives at least `threshold`. An utterance takes in `prefix_padding_s` before it, ends after
    `silence_s` without speech, and is cut where a pause is likeliest before it gets longer than `max_utterance_s`.
    """

    threshold: float = 0.5
    prefix_padding_s: float = 0.3
    silence_s: float = 0.5
    max_utterance_s: float = 15.0


@dataclass(frozen=True)
class LiveRequest:
    """Audio that comes bit by bit, cut into utterances where the speaker pauses.

    With the scope `utterance` the instruction is about each utterance. With `recording` every utterance is transcribed, and
    the instruction is about all of them together: its answer comes with `Ended`. Recorded audio, however long, is the same
    thing without `partials`, at another `priority`.
    """

    id: str
    instruction: str
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    client: str = ""
    priority: Priority = Priority.LIVE
    draft: DraftPolicy = "exact"
    voice: VoiceOptions = field(default_factory=VoiceOptions)
    scope: Scope = "utterance"
    partials: bool = True
    word_times: bool = False


@dataclass(frozen=True)
class Audio:
    """More mono samples at the model's rate."""

    samples: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Flush:
    """End the utterance that is going on; `Flushed` with the same marker comes once all audio before it is answered."""

    marker: str


@dataclass(frozen=True)
class ChangeInstruction:
    """The instruction for utterances that begin from here on. One that is refused brings a `Problem` and changes nothing."""

    instruction: str


@dataclass(frozen=True)
class EndOfAudio:
    """Nothing more will come: answer what is there, then `Ended`."""


LiveInput = Audio | Flush | ChangeInstruction | EndOfAudio


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
    """What has been heard of an utterance up to `end_s`, by the speech model alone.

    `stable`, which ends at `stable_end_s`, begins every later partial of this utterance; `tail` may change. Joined as they
    are, they are the text. The answer comes from the LLM and may differ from both.
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
    """Something went wrong, with one utterance or else with an input, and the session goes on."""

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

    Under the scope `recording` `answer` is the answer about all of it: from the speech itself (`audio`), or, where that does
    not fit the LLM, from the joined transcript, or even from answers about `sections` of it. Its text came as `Delta`s too.
    """

    request_id: str
    audio_s: float
    basis: Basis = "utterances"
    sections: int = 1
    answer: Done | None = None


LiveEvent = Listened | SpeechStarted | Partial | UtteranceDone | Problem | Flushed | Delta | Ended | Failed
