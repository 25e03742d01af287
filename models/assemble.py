"""Load all models of a bundle, for an engine or an evaluation."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from models.bundle.encoder_decoder import EncoderDecoderSection
from models.bundle.io import Bundle
from models.bundle.schema import EncoderSection, LlmSection, SpeechDecoderSection, dimension
from models.encoders.windows import KeptWindows, SpeechWindow
from models.projectors.no_projector import NoProjector
from models.projectors.subsample import TrainedAdapter, read_adapter
from models.protocols import (
    LLM,
    Decoder,
    Encoder,
    EncoderDecoder,
    EncoderStates,
    Features,
    Float32,
    Projector,
    ProjectorOutput,
    SpeechDecoder,
    VoiceDetector,
)
from models.registry import FEATURES, VADS, look_up
from models.runtimes.onnx.encoder import OnnxEncoder
from models.runtimes.onnx.llm import OnnxLLM
from models.runtimes.onnx.projector import OnnxDraftingProjector, OnnxFrameProjector, OnnxProjector
from models.runtimes.onnx.speech_decoder import OnnxEncoderDecoder, OnnxSpeechDecoder
from models.speech_decoders.speech_model import SpeechModel
from models.text.constraint import Grammars
from models.text.tokeniser import PromptTemplate, Tokeniser, is_transcription
from models.text.transcript_label import TranscriptLabel
from models.text.word_times import WordTimer

RATED_S = 2
"""The audio by which an encoder's rate is measured, a whole number of every front end's frames."""
TRANSCRIPTION_INSTRUCTION = "Transcribe the speech to text."
"""The instruction for a transcript where a bundle names none."""


def _nothing() -> None:
    """Do nothing: a CPU is never lost, and some encoders cannot be interrupted."""


@dataclass(frozen=True)
class Hearing:
    """The silence behind an utterance that the encoder hears: at least `silence_behind_s`, and at least `floor_s` in all.

    Whisper's decoder needs it to stop (`docs/results.md`). The projector reads the states of the utterance itself only, and those
    of `FRAMES_BEHIND` of its frames more, for a last word that is recognised late.
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
        """Return how many states the projector reads of an utterance of so many samples."""
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
    says what the LLM gets of the speech for other instructions. The draft is in the tokens of `draft_vocabulary`. `hearing` says
    what of the silence behind the audio each part hears; None is for encoders that hear none.
    Without an `llm` instructions that ask for anything else are refused, and `tokeniser` is the speech decoder's. So they are
    where the LLM itself only transcribes: its transcripts have a `label`.
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
    draft_vocabulary: Literal["llm", "speech_decoder"] = "llm"
    bridge: Literal["frames", "transcript"] = "frames"
    hearing: Hearing | None = None
    window: SpeechWindow | None = None
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
        return self.decoders[0].slots

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
        """Return how many positions a prompt of the LLM may have before an answer of so many tokens."""
        if self.encoder_decoder is not None:
            return self.encoder_decoder.max_states
        return self.require_llm().max_positions - answer_tokens

    def answer_room(self, prompt_positions: int) -> int:
        """Return how many tokens an answer of the LLM may have after a prompt of so many positions, less than 1 for none."""
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
        return audio if self.hearing is None else self.hearing.pad_audio(audio)

    def encode(self, features: Sequence[Float32], kept: Sequence[KeptWindows]) -> list[EncoderStates]:
        """Return the states of utterances; of each, whole windows are found in `kept`, where the encoder has windows."""
        if self.window is None:
            return self.encoder.encode(features)
        return [self.window.encode(self.encoder, each, windows) for each, windows in zip(features, kept, strict=True)]

    def project(self, states: Sequence[EncoderStates], samples: Sequence[int]) -> list[ProjectorOutput]:
        """Project the states of utterances of so many samples each, before padding."""
        if self.hearing is None or self.hearing.projects_padding:
            return self.projector.project(states)
        own = [each[: self.hearing.own_states(count)] for each, count in zip(states, samples, strict=True)]
        outputs = self.projector.project(own)
        return [replace(output, states=each) for output, each in zip(outputs, states, strict=True)]

    @cached_property
    def grammars(self) -> Grammars:
        """The compiled grammars of the LLM's answers. Raises `ValueError` without an LLM."""
        return Grammars(self.tokeniser, self.template.end_tokens, self.require_llm().vocabulary_size)


def load_models(bundle: Bundle, slots: int, threads: int) -> Models:
    """Load a verified bundle's models on the CPU; 0 threads means one per core.

    Raises `BackendError`, and `BundleError` where a declared value is not that of the files.
    """
    encoder_section = bundle.manifest.encoder
    encoder = OnnxEncoder(bundle.path(encoder_section.graph), threads)
    bundle.require_values(encoder_section, "encoder", encoder_section.graph, encoder_section.graph_values(encoder.shapes))
    llm, projector = _load_llm(bundle, slots, threads), _load_projector(bundle, threads)
    models = chain_models(bundle, encoder, projector, llm, load_speech_decoder(bundle, slots, threads))
    _require_rates(bundle, models)
    return replace(models, interrupt_encoder=encoder.interrupt)


def _load_llm(bundle: Bundle, slots: int, threads: int) -> LLM | None:
    section = bundle.manifest.llm
    if section is None:
        return None
    if isinstance(section, EncoderDecoderSection):
        return _load_encoder_decoder(bundle, section, slots, threads)
    llm = OnnxLLM(bundle.path(section.graph), bundle.path(section.embedding), slots=slots, threads=threads)
    bundle.require_values(section, "llm", section.graph, section.graph_values(llm.shapes))
    return llm


def _load_encoder_decoder(bundle: Bundle, section: EncoderDecoderSection, slots: int, threads: int) -> LLM:
    llm = OnnxEncoderDecoder(
        *(bundle.path(name) for name in (section.graph, section.memory_graph, section.embedding)),
        max_states=section.max_states,
        start_token=section.start_token,
        slots=slots,
        threads=threads,
    )
    bundle.require_values(section, "llm", section.graph, section.graph_values(llm.shapes))
    bundle.require_values(section, "llm", section.memory_graph, section.memory_values(llm.memory_shapes))
    return llm


def _load_projector(bundle: Bundle, threads: int) -> Projector:
    manifest, section = bundle.manifest, bundle.manifest.projector
    if section is None:
        return NoProjector()
    if not section.drafts:
        frames = OnnxFrameProjector(bundle.path(section.graph), threads)
        bundle.require_values(section, "projector", section.graph, section.graph_values(frames.shapes))
        return frames
    if section.weights is None:
        drafting = OnnxDraftingProjector(bundle.path(section.graph), threads)
        bundle.require_values(section, "projector", section.graph, section.graph_values(drafting.shapes))
        return drafting
    trained = read_trained(bundle)
    embeds = manifest.llm is not None and manifest.bridge == "frames"
    projector = OnnxProjector(
        bundle.path(section.graph),
        np.load(bundle.path(manifest.require_llm().embedding), mmap_mode="r") if embeds else None,
        boundary_before=trained.boundary_before,
        boundary_after=trained.boundary_after,
        threads=threads,
    )
    bundle.require_values(section, "projector", section.graph, section.graph_values(projector.shapes))
    return projector


def load_speech_decoder(
    bundle: Bundle, slots: int, threads: int, open_decoder: Callable[..., OnnxSpeechDecoder] = OnnxSpeechDecoder
) -> SpeechDecoder | None:
    """Load the bundle's speech decoder, if it has one, on the CPU. Raises as `load_models` does.

    `open_decoder` takes what `OnnxSpeechDecoder` takes.
    """
    section = bundle.manifest.speech_decoder
    if section is None:
        return None
    graph, memory, embedding = (bundle.path(name) for name in (section.graph, section.memory_graph, section.embedding))
    decoder = open_decoder(graph, memory, embedding, max_states=section.max_states, slots=slots, threads=threads)
    bundle.require_values(section, "speech_decoder", section.graph, section.graph_values(decoder.shapes))
    bundle.require_values(section, "speech_decoder", section.memory_graph, section.memory_values(decoder.memory_shapes))
    width = {"width": dimension(decoder.memory_shapes, "states", -1)}
    bundle.require_values(bundle.manifest.encoder, "encoder", section.memory_graph, width)
    return decoder


def draft_table_path(bundle: Bundle) -> Path:
    """Return the file of the table that the projector's frames are scored against, by default the LLM's embeddings."""
    return bundle.path(bundle.manifest.require_projector().table or bundle.manifest.require_llm().embedding)


def read_trained(bundle: Bundle) -> TrainedAdapter:
    """Read the projector's trained file. Raises `BackendError`; `BundleError` where a declared value is not the trained one."""
    section = bundle.manifest.require_projector()
    trained = read_adapter(bundle.path(section.require_weights()))
    bundle.require_values(section, "projector", section.require_weights(), trained.values)
    return trained


def chain_models(
    bundle: Bundle, encoder: Encoder, projector: Projector, llm: LLM | None, speech_decoder: SpeechDecoder | None = None
) -> Models:
    """Chain a bundle's models, on whatever device each runs; all other parts run on the CPU.

    The front end is the one that the encoder's family declares. numpy's linear algebra is left one thread in this process: its
    idle threads spin and take a core from the models. Raises `BundleError` where a declared value is not that of the files.
    """
    threadpool_limits(1, "blas")
    manifest = bundle.manifest
    features: Features = look_up(FEATURES, manifest.encoder.features)(**manifest.encoder.feature_options())
    bundle.require_values(manifest, "", f"the front end {manifest.encoder.features}", {"sample_rate_hz": features.sample_rate_hz})
    voice = look_up(VADS, manifest.voice.architecture)(bundle.path(manifest.voice.graph), manifest.voice.window_samples)
    bundle.require_values(manifest.voice, "voice", manifest.voice.graph, voice.graph_values)
    instructions = manifest.transcription_instructions
    subsampling = manifest.projector.frame_states if manifest.projector else 1
    frame_s = subsampling / manifest.encoder.states_per_s
    speech = None
    if (section := manifest.speech_decoder) and speech_decoder is not None:
        speech = SpeechModel(speech_decoder, _open_tokeniser(bundle, section, "speech_decoder"), section.tokens)
    tokeniser, template = _open_text(bundle, speech)
    pads = manifest.encoder.floor_s or manifest.encoder.silence_behind_s
    return Models(
        features=features,
        encoder=encoder,
        projector=projector,
        llm=llm,
        tokeniser=tokeniser,
        template=template,
        voice=voice,
        word_timer=_time_words(bundle, tokeniser, speech, frame_s),
        boundary_instructions=instructions,
        frame_s=frame_s,
        sample_rate_hz=manifest.sample_rate_hz,
        transcription_instruction=instructions[0] if instructions else TRANSCRIPTION_INSTRUCTION,
        speech=speech,
        label=None if manifest.transcripts is None else TranscriptLabel(**manifest.transcripts.model_dump()),
        translation_instructions=() if section is None else section.translation_instructions,
        draft_vocabulary=manifest.projector.vocabulary if manifest.projector else "llm",
        bridge=manifest.bridge,
        hearing=Hearing(
            manifest.encoder.floor_s,
            manifest.encoder.silence_behind_s,
            manifest.max_audio_s,
            manifest.sample_rate_hz,
            subsampling,
            frame_s,
            projects_padding=manifest.projector is not None and manifest.projector.reads_padding,
        )
        if pads
        else None,
        window=_window(manifest.encoder, features, frame_s),
    )


def _window(encoder: EncoderSection, features: Features, frame_s: float) -> SpeechWindow | None:
    if encoder.window_s is None:
        return None
    return SpeechWindow(round(encoder.window_s * features.frames_per_s), round(encoder.window_s / frame_s))


def _open_text(bundle: Bundle, speech: SpeechModel | None) -> tuple[Tokeniser, PromptTemplate]:
    """Return the LLM's tokeniser and prompt; without an LLM the speech decoder's tokeniser, and an empty prompt."""
    manifest = bundle.manifest
    if manifest.llm is not None and manifest.prompt is not None:
        return _open_tokeniser(bundle, manifest.llm, "llm"), PromptTemplate.from_json(manifest.prompt.model_dump())
    if speech is None:
        raise ValueError("the bundle has neither an LLM nor a speech decoder")
    return speech.tokeniser, PromptTemplate((), (), (), (speech.tokens.end,))


def _time_words(bundle: Bundle, tokeniser: Tokeniser, speech: SpeechModel | None, frame_s: float) -> WordTimer | None:
    """Return the timer of words in the draft's tokens; None without a draft."""
    manifest = bundle.manifest
    if manifest.projector is None or not manifest.projector.drafts:
        return None
    if manifest.projector.vocabulary == "llm" or speech is None:
        return WordTimer(tokeniser, manifest.require_llm().vocabulary_size, manifest.sample_rate_hz, frame_s)
    return WordTimer(speech.tokeniser, speech.decoder.vocabulary_size, manifest.sample_rate_hz, frame_s)


def _open_tokeniser(bundle: Bundle, section: LlmSection | SpeechDecoderSection, place: str) -> Tokeniser:
    """Return the tokeniser of a decoder, whose logits must be as many as its tokens at least."""
    tokeniser = Tokeniser.from_file(bundle.path(section.tokeniser))
    if tokeniser.vocabulary_size > section.vocabulary_size:
        bundle.require_values(section, place, section.tokeniser, {"vocabulary_size": tokeniser.vocabulary_size})
    return tokeniser


def _require_rates(bundle: Bundle, models: Models) -> None:
    """Encode some silence, and compare the encoder's rate and the projector's with the declared ones."""
    manifest = bundle.manifest
    features = look_up(FEATURES, manifest.encoder.features)(**manifest.encoder.feature_options())
    silence = features(np.zeros(RATED_S * features.sample_rate_hz, np.float32))
    (states,) = models.encoder.encode([silence])
    counted = len(states) - manifest.encoder.added_states
    # A front end of whole windows leaves out one state.
    counted += counted + 1 == manifest.encoder.states_per_s * RATED_S
    rate = {"states_per_s": counted / RATED_S}
    bundle.require_values(manifest.encoder, "encoder", manifest.encoder.graph, rate)
    if (section := manifest.projector) and section.drafts:
        (output,) = models.projector.project([states])
        frames = max(1, len(output.require_draft().blank_probability))
        bundle.require_values(section, "projector", section.graph, {"frame_states": -(-len(states) // frames)})
