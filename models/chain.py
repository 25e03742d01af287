"""The models of a bundle in the order in which a request runs them, on whatever device each is."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from models.encoders.windows import KeptWindows, SpeechWindow
from models.protocols import (
    LLM,
    Decoder,
    Encoder,
    EncoderDecoder,
    EncoderStates,
    Float32,
    Projector,
    ProjectorOutput,
    VoiceDetector,
)
from models.speech_decoders.speech_model import SpeechModel
from models.text.constraint import Grammars
from models.text.tokeniser import PromptTemplate, Tokeniser, is_transcription
from models.text.transcript_label import TranscriptLabel
from models.text.word_times import WordTimer

TRANSCRIPTION_INSTRUCTION = "Transcribe the speech to text."
"""The instruction for a transcript where a bundle names none."""


def _nothing() -> None:
    """Do nothing: a CPU is never lost, and some encoders cannot be interrupted."""


@dataclass(frozen=True)
class SilencePadding:
    """The silence that is added behind an utterance: at least `silence_behind_s`, up to at least `floor_s` in all.

    Whisper's decoder needs it to stop (`docs/results.md`). Of the encoder's states the projector reads those of the utterance,
    and of `FRAMES_BEHIND` of its own frames more, because the last word may be recognised late. With `projects_padding` it reads
    all of them.
    """

    FRAMES_BEHIND: ClassVar[int] = 2

    floor_s: float
    silence_behind_s: float
    longest_s: float
    sample_rate_hz: int
    states_per_frame: int
    frame_s: float
    projects_padding: bool = False

    def pad_audio(self, audio: Float32) -> Float32:
        """Return audio with silence behind it, of which the encoder takes `longest_s`."""
        wanted_s = max(self.floor_s, len(audio) / self.sample_rate_hz + self.silence_behind_s)
        samples = round(min(wanted_s, self.longest_s) * self.sample_rate_hz)
        return np.pad(audio, (0, max(0, samples - len(audio))))

    def own_states(self, samples: int) -> int:
        """Return how many states the projector reads of an utterance of `samples` samples."""
        frames = -(-samples // round(self.frame_s * self.sample_rate_hz)) + self.FRAMES_BEHIND
        return self.states_per_frame * frames


@dataclass(frozen=True)
class Models:
    """The parts of the chain. `features` turns mono audio into features [bins, frames]; one projector frame lasts `frame_s`.

    The answer under `transcription_instruction` is a transcript. `word_timer` is None if the projector gives no CTC draft. With
    `encodes_beside`, encoder and projector do not use the LLM's processor (on a GPU each has its own stream) and may run in one
    thread while the LLM runs in another. `interrupt_encoder` has the encoder that runs in another thread raise
    `EncodingInterrupted`, where the runtime can. `check` is called after a failure: it raises `BackendLostError` if the models
    can run nothing any more.

    With `speech`, the speech decoder writes transcripts, and translations into English under `translation_instructions`; `bridge`
    says what the LLM gets of the speech for other instructions. The draft is in the tokens of `draft_vocabulary`. `padding` is
    the silence that is added behind the audio, None for encoders that need none.
    Without an `llm` all other instructions are refused, and `tokeniser` is the speech decoder's. An LLM that only transcribes
    refuses them too; its transcripts have a `label`. Without any decoder the draft is the answer, `tokeniser` is that of the CTC
    head, and `utterances_at_once` says how many requests are worked on at the same time.
    """

    features: Callable[[Float32], Float32]
    encoder: Encoder
    projector: Projector
    llm: LLM | None
    tokeniser: Tokeniser
    template: PromptTemplate
    voice: VoiceDetector
    word_timer: WordTimer | None
    boundary_instructions: Collection[str] | None = None
    frame_s: float = 0.08
    sample_rate_hz: int = 16_000
    transcription_instruction: str = TRANSCRIPTION_INSTRUCTION
    speech: SpeechModel | None = None
    label: TranscriptLabel | None = None
    translation_instructions: Collection[str] = ()
    draft_vocabulary: Literal["llm", "speech_decoder", "own"] = "llm"
    bridge: Literal["frames", "transcript"] = "frames"
    padding: SilencePadding | None = None
    window: SpeechWindow | None = None
    utterances_at_once: int = 1
    encodes_beside: bool = False
    interrupt_encoder: Callable[[], None] = _nothing
    check: Callable[[], None] = _nothing

    def boundaries(self, instruction: str) -> tuple[Float32, Float32]:
        """Return the boundary vectors before and after the speech; none for an instruction that they were not trained under.

        The vectors make the LLM copy the speech. Without them the LLM treats the speech as text, which suits any other
        instruction.
        """
        if self.bridge == "transcript" or self.llm is None:
            none = np.empty((0, 0 if self.llm is None else self.llm.embedding_size), np.float32)
            return none, none
        before, after = self.projector.boundary_before, self.projector.boundary_after
        return (before, after) if self.transcribes(instruction) else (before[:0], after[:0])

    def transcribes(self, instruction: str) -> bool:
        """Return whether an instruction is known to ask for a transcript: the boundary vectors were trained under it."""
        return is_transcription(instruction, self.boundary_instructions)

    def translates(self, instruction: str) -> bool:
        """Return whether an instruction is known to ask for a translation into English, which the speech decoder can write."""
        return self.speech is not None and is_transcription(instruction, self.translation_instructions)

    @property
    def follows_instructions(self) -> bool:
        """Whether an LLM answers instructions; if not, the model transcribes, and may translate."""
        return self.llm is not None and self.label is None

    @property
    def languages(self) -> Collection[str]:
        """The codes of the languages that a request may name as the one that is spoken; empty where it can name none."""
        if self.speech is not None:
            return self.speech.tokens.languages
        return self.template.languages if self.label is None else self.label.languages

    @property
    def takes_keywords(self) -> bool:
        """Whether a request for a transcript may name words that may be spoken."""
        return self.speech is not None or self.label is not None or self.template.before_keywords is not None

    @property
    def decoders(self) -> tuple[Decoder, ...]:
        """The decoders by number: the speech decoder, if there is one, then the LLM, if there is one."""
        decoders = (None if self.speech is None else self.speech.decoder, self.llm)
        return tuple(decoder for decoder in decoders if decoder is not None)

    @property
    def slots(self) -> int:
        """How many requests each decoder works on at the same time."""
        return self.decoders[0].slots if self.decoders else self.utterances_at_once

    @property
    def drafts(self) -> bool:
        """Whether the projector gives a CTC draft."""
        return self.word_timer is not None

    def require_llm(self) -> LLM:
        """Return the LLM. Raises `ValueError` if there is none."""
        if self.llm is None:
            raise ValueError("the models have no LLM")
        return self.llm

    @cached_property
    def encoder_decoder(self) -> EncoderDecoder | None:
        """The LLM, if an encoder of its own reads the prompt."""
        return self.llm if isinstance(self.llm, EncoderDecoder) else None

    def prompt_room(self, answer_tokens: int) -> int:
        """Return how many positions a prompt of the LLM may have before an answer of `answer_tokens`."""
        if self.encoder_decoder is not None:
            return self.encoder_decoder.max_states
        return self.require_llm().max_positions - answer_tokens

    def answer_room(self, prompt_positions: int) -> int:
        """Return how many tokens an answer of the LLM may have after a prompt of `prompt_positions`; below 1: no room."""
        if (reader := self.encoder_decoder) is not None:
            return reader.max_positions - 1 if prompt_positions <= reader.max_states else 0
        return self.require_llm().max_positions - prompt_positions

    @property
    def draft_tokeniser(self) -> Tokeniser:
        """The tokeniser of the draft's tokens."""
        return self.require_speech().tokeniser if self.draft_vocabulary == "speech_decoder" else self.tokeniser

    def require_speech(self) -> SpeechModel:
        """Return the speech decoder's part. Raises `ValueError` if there is none."""
        if self.speech is None:
            raise ValueError("the models have no speech decoder")
        return self.speech

    def pad_audio(self, audio: Float32) -> Float32:
        """Return audio as the encoder hears it, with silence behind it."""
        return audio if self.padding is None else self.padding.pad_audio(audio)

    def encode(self, features: Sequence[Float32], kept: Sequence[KeptWindows]) -> list[EncoderStates]:
        """Return the states of utterances; of each, whole windows are found in `kept`, where the encoder has windows."""
        if self.window is None:
            return self.encoder.encode(features)
        return [self.window.encode(self.encoder, each, windows) for each, windows in zip(features, kept, strict=True)]

    def encode_alone(self, audio: Float32) -> EncoderStates:
        """Return the states of one utterance, from its audio, without an engine."""
        (states,) = self.encoder.encode([self.features(self.pad_audio(audio))])
        return states

    def project(self, states: Sequence[EncoderStates], samples: Sequence[int]) -> list[ProjectorOutput]:
        """Project the states of utterances, which have `samples` samples each without padding."""
        if self.padding is None or self.padding.projects_padding:
            return self.projector.project(states)
        own = [each[: self.padding.own_states(count)] for each, count in zip(states, samples, strict=True)]
        outputs = self.projector.project(own)
        return [replace(output, states=each) for output, each in zip(outputs, states, strict=True)]

    @cached_property
    def grammars(self) -> Grammars:
        """The compiled grammars of the LLM's answers. Raises `ValueError` without an LLM."""
        return Grammars(self.tokeniser, self.template.end_tokens, self.require_llm().vocabulary_size)
