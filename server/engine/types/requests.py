"""A request about whole audio, or a live session and its inputs. Plain data."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from server.engine.types.options import DraftPolicy, Priority, SamplingOptions, Scope, VoiceOptions, WordTimes


@dataclass(frozen=True)
class SpeechTask:
    """A question about speech, and how it is answered.

    `draft` says whether the CTC draft may speed up the answer, and how strictly. `word_times` asks for `Done.words`, which only
    transcripts have, and only of some models. `language` is the code of the one that is spoken, None where the model is to find
    out, among `languages` if any are given. `prompt` is text that comes before what is spoken, and shows spelling and style;
    `keywords` are names and terms that may be spoken. Only some models take them.
    """

    instruction: str
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    draft: DraftPolicy = "exact"
    word_times: WordTimes = "none"
    language: str | None = None
    languages: tuple[str, ...] = ()
    prompt: str = ""
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class InstructRequest:
    """Mono float32 audio at the model's sample rate, and the task about it.

    Work counts against the share of `client`, and cached audio is found by the same client only. An answer later than
    `deadline_s` after submission is worthless.
    """

    id: str
    audio: npt.NDArray[np.float32]
    task: SpeechTask
    client: str = ""
    priority: Priority = Priority.INTERACTIVE
    deadline_s: float | None = None


@dataclass(frozen=True)
class LiveRequest:
    """Audio that comes bit by bit and is cut into utterances at the speaker's pauses.

    With the scope `utterance` the task is about each utterance. With `recording` every utterance is transcribed, and the task is
    about all of them together: its answer comes with `Ended`. A recording of any length is served in the same way, without
    `partials` and at a priority below `LIVE`.
    """

    id: str
    task: SpeechTask
    client: str = ""
    priority: Priority = Priority.LIVE
    voice: VoiceOptions = field(default_factory=VoiceOptions)
    scope: Scope = "utterance"
    partials: bool = True

    @property
    def is_recording(self) -> bool:
        """Whether this is recorded audio: recordings and live sessions have places of their own."""
        return self.priority > Priority.LIVE


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
    """The instruction for utterances that begin from here on. A refusal comes as a `Problem` and changes nothing."""

    instruction: str


@dataclass(frozen=True)
class EndOfAudio:
    """The end of the input: the session answers the audio it has, then comes `Ended`."""


LiveInput = Audio | Flush | ChangeInstruction | EndOfAudio
