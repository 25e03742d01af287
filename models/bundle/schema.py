"""The schema of `bundle.json`, version 3: what a bundle declares of its models.

`architecture` names a family of `models.registry`, whose section class holds the values that the family needs. At load each
declared value is compared with the graph (`graph_values`), so that a wrong one is a `BundleError` and not a wrong text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from models.registry import ENCODERS, LLMS, PROJECTORS, SPEECH_DECODERS, VADS, UnknownNameError, look_up, require_known
from models.text.tokeniser import is_transcription

SCHEMA_VERSION: Final = 3

Shapes = Mapping[str, Sequence[Any]]
"""The shapes of a graph's inputs and outputs by name; a dimension that is not an int is free."""
GraphValues = Mapping[str, Any]


def dimension(shapes: Shapes, tensor: str, axis: int) -> Any:
    """Return a dimension of an input or output, or None if the graph has no such tensor or axis."""
    shape = shapes.get(tensor, ())
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _require_plain_name(name: str) -> str:
    """Require a relative path with forward slashes whose parts begin with no dot: it can neither leave the folder nor hide."""
    part = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
    if not re.fullmatch(rf"{part}(/{part})*", name):
        raise ValueError(f"{name!r} is not the plain name of a file inside the bundle")
    return name


FileName = Annotated[str, AfterValidator(_require_plain_name)]
TokenIds = tuple[NonNegativeInt, ...]


class Section(BaseModel):
    """One part of `bundle.json`: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    """One model: its family, its precision and its graph. A family's own section adds values and `graph_values`."""

    architecture: str
    precision: str
    graph: FileName

    def graph_values(self, shapes: Shapes) -> GraphValues:
        """Return the graph's own value, read from its `shapes`, for each declared value that they show."""
        raise NotImplementedError


class EncoderSection(ModelSection):
    """A frozen speech encoder: features in, `states_per_s` states of `width` out.

    `features` names the front end in `models.registry.FEATURES`. Audio is heard with silence behind it: at least
    `silence_behind_s`, and at least `floor_s` in all. One with `window_s` hears the audio in windows of that length, which do not
    see each other.
    """

    features: ClassVar[str]
    width: PositiveInt
    states_per_s: PositiveFloat
    floor_s: NonNegativeFloat = 0.0
    silence_behind_s: NonNegativeFloat = 0.0
    window_s: PositiveFloat | None = None

    @property
    def added_states(self) -> int:
        """The states of silence that the graph itself adds behind those of the audio."""
        return 0

    def feature_options(self) -> dict[str, Any]:
        """Return the keyword arguments of the front end."""
        return {}


class MelEncoderSection(EncoderSection):
    """An encoder whose front end takes only `mel_bins`, and puts so many frames of them (`STACKED`) into one."""

    STACKED: ClassVar[int] = 1
    mel_bins: PositiveInt

    def feature_options(self) -> dict[str, Any]:
        return {"mel_bins": self.mel_bins}

    def graph_values(self, shapes: Shapes) -> GraphValues:
        bins = dimension(shapes, "features", 0)
        return {"mel_bins": bins // self.STACKED if isinstance(bins, int) else bins, "width": dimension(shapes, "states", 1)}


class ProjectorSection(ModelSection):
    """A projector: one frame of `embedding_size` out of `subsampling` encoder states of `encoder_width`.

    One that `drafts` gives a CTC transcript too; one that `reads_padding` gets the states of the silence behind the audio. Only
    our own has `weights`, the trained file (safetensors), which holds the boundary vectors too. Those are put around the speech
    under `boundary_instructions`, regardless of case and punctuation; None means under every instruction. The draft is in the
    tokens of `vocabulary`, and scored against `table`, by default the LLM's embeddings. One that `writes`, in tokens of its
    `own`, gives the answers of a bundle that has neither an LLM nor a speech decoder.
    """

    drafts: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    reads_padding: ClassVar[bool] = False
    weights: FileName | None = None
    encoder_width: PositiveInt
    subsampling: PositiveInt
    embedding_size: PositiveInt
    boundary_instructions: tuple[str, ...] | None = None
    vocabulary: Literal["llm", "speech_decoder", "own"] = "llm"
    table: FileName | None = None

    @property
    def frame_states(self) -> int:
        """How many encoder states one frame of the draft has: as many as one of the projector's own frames."""
        return self.subsampling

    def require_weights(self) -> str:
        """Return the trained file. Raises `ValueError` if there is none."""
        if self.weights is None:
            raise ValueError(f"a projector of the kind {self.architecture} has no trained file")
        return self.weights

    def named_files(self) -> set[str]:
        """Return the files that the section names."""
        return {each for each in (self.graph, self.weights, self.table) if each}


class FrameProjectorSection(ProjectorSection):
    """A projector of a published model: its graph takes `states` and gives `frames`, and there is no draft."""

    def graph_values(self, shapes: Shapes) -> GraphValues:
        return {"encoder_width": dimension(shapes, "states", 1), "embedding_size": dimension(shapes, "frames", 1)}


class SpeechTokens(Section):
    """The control tokens of a speech decoder, its languages by their codes, and the tokens that a transcript must not hold.

    A transcript begins with `start`, a language, a task and `no_timestamps`; one of a model that is not `multilingual` with
    `start` and `no_timestamps`. `suppressed_first` must not be its first text.
    """

    multilingual: bool = True

    start: NonNegativeInt
    end: NonNegativeInt
    transcribe: NonNegativeInt
    translate: NonNegativeInt
    no_timestamps: NonNegativeInt
    no_speech: NonNegativeInt
    previous: NonNegativeInt
    languages: dict[str, NonNegativeInt] = Field(min_length=1)
    suppressed: TokenIds = ()
    suppressed_first: TokenIds = ()


class SpeechDecoderSection(ModelSection):
    """The decoder of the speech foundation model: it attends to at most `max_states` encoder states, by `memory_graph`.

    A transcript is translated, into English, under `translation_instructions`. In a bundle without a projector the instructions
    that ask for a transcript are `transcription_instructions`.
    """

    memory_graph: FileName
    embedding: FileName
    tokeniser: FileName
    layers: PositiveInt
    embedding_size: PositiveInt
    vocabulary_size: PositiveInt
    max_positions: PositiveInt
    max_states: PositiveInt
    tokens: SpeechTokens
    transcription_instructions: tuple[str, ...] = ()
    translation_instructions: tuple[str, ...] = ()

    def memory_values(self, shapes: Shapes) -> GraphValues:
        """Return the memory graph's own values, as `graph_values` does the graph's."""
        raise NotImplementedError


class LlmSection(ModelSection):
    """A frozen LLM with K/V slots. `embedding` is its input embedding table [vocabulary_size, embedding_size]."""

    embedding: FileName
    tokeniser: FileName
    layers: PositiveInt
    key_value_heads: PositiveInt
    head_size: PositiveInt
    embedding_size: PositiveInt
    vocabulary_size: PositiveInt
    max_positions: PositiveInt

    def named_files(self) -> set[str]:
        """Return the files that the section names."""
        return {self.graph, self.embedding, self.tokeniser}


class PromptSection(Section):
    """The token ids of a prompt, as `models.text.tokeniser.PromptTemplate` has them, and those that end an answer."""

    prefix: TokenIds
    after_instruction: TokenIds
    suffix: TokenIds
    end_tokens: TokenIds = Field(min_length=1)
    after_speech: TokenIds | None = None
    transcription: TokenIds | None = None
    before_keywords: str | None = None
    languages: dict[str, TokenIds] = Field(default_factory=dict)
    transcription_end: TokenIds = ()
    published: dict[str, TokenIds] = Field(default_factory=dict)


class TranscriptsSection(Section):
    """How an LLM that only transcribes labels its transcripts, as `models.text.transcript_label.TranscriptLabel` has it."""

    beginning: str
    marker: NonNegativeInt
    languages: dict[str, str] = Field(min_length=1)


def _require_detector(name: str) -> str:
    require_known(VADS, name)
    return name


class VoiceSection(Section):
    """The voice detector: the probability of speech in each window of `window_samples` at `sample_rate_hz`, the bundle's.

    `architecture` names the detector in `models.registry.VADS`.
    """

    architecture: Annotated[str, AfterValidator(_require_detector)]
    graph: FileName
    sample_rate_hz: PositiveInt
    window_samples: PositiveInt


class PlanSection(Section):
    """A TensorRT plan of one part, for the exact version of the builder and the GPU architecture (such as `sm_90`) that it names.

    `profiles` are the optimisation profiles in order: smallest, best and largest size of each free dimension of the
    graph, by its name (`export.tensorrt_profiles`). `max_positions` is the slots' length, 0 in parts without slots.
    `activation_bytes` is the memory between the kernels of its largest step, 0 where it is not known.
    """

    part: str
    file: FileName
    builder: Literal["tensorrt", "tensorrt_rtx"]
    builder_version: str
    gpu: str = Field(pattern=r"^sm_[0-9]{2,3}$")
    precision: str
    max_positions: NonNegativeInt
    activation_bytes: NonNegativeInt = 0
    profiles: tuple[dict[str, tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]], ...] = Field(min_length=1)


class FileEntry(Section):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: NonNegativeInt


AnySection = TypeVar("AnySection", bound=ModelSection)


def _of_family(kind: type[AnySection], families: Mapping[str, str]) -> BeforeValidator:
    """Validate a section from JSON with the class that its architecture has in the registry."""

    def validate(value: object) -> object:
        if not isinstance(value, dict):
            return value
        architecture = value.get("architecture")
        try:
            section = look_up(families, architecture) if isinstance(architecture, str) else kind
            return section.model_validate_json(json.dumps(value))
        except UnknownNameError as error:
            raise PydanticCustomError("family", "{problem}", {"place": "architecture", "problem": str(error)}) from None
        except ValidationError as error:
            place, problem = first_problem(error)
            raise PydanticCustomError("section", "{problem}", {"place": place, "problem": problem}) from None

    return BeforeValidator(validate)


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the place, such as `encoder.width`, and the message of the first of the problems."""
    detail = error.errors(include_url=False)[0]
    inner = detail.get("ctx", {}).get("place", "")
    return ".".join(str(part) for part in (*detail["loc"], inner) if part != ""), detail["msg"]


class BundleDescription(Section):
    """All of `bundle.json` but the list of files, which `write_bundle` makes.

    `bridge` is what the LLM gets of the speech: the projector's frames, or the speech decoder's transcript as tokens. Without an
    LLM the speech decoder writes transcripts, and translations, and other instructions are refused; without both the projector's
    CTC head writes transcripts. Without a projector there is no draft. An LLM with `transcripts` transcribes and follows no
    instruction: its prompt holds a context in the place.
    """

    schema_version: Literal[3] = SCHEMA_VERSION
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    created: datetime
    sample_rate_hz: PositiveInt
    max_audio_s: PositiveFloat
    encoder: Annotated[SerializeAsAny[EncoderSection], _of_family(EncoderSection, ENCODERS)]
    projector: Annotated[SerializeAsAny[ProjectorSection], _of_family(ProjectorSection, PROJECTORS)] | None = None
    llm: Annotated[SerializeAsAny[LlmSection], _of_family(LlmSection, LLMS)] | None = None
    prompt: PromptSection | None = None
    transcripts: TranscriptsSection | None = None
    voice: VoiceSection
    speech_decoder: Annotated[SerializeAsAny[SpeechDecoderSection], _of_family(SpeechDecoderSection, SPEECH_DECODERS)] | None = (
        None
    )
    bridge: Literal["frames", "transcript"] = "frames"
    licences: dict[str, str] = Field(min_length=1)
    plans: tuple[PlanSection, ...] = ()

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        self._check_parts()
        if self.projector:
            self._check_projector(self.projector)
        if self.llm and self.prompt:
            self._check_prompt(self.llm, self.prompt)
        if self.voice.sample_rate_hz != self.sample_rate_hz:
            raise ValueError("voice.sample_rate_hz differs from sample_rate_hz")
        if speech := self.speech_decoder:
            tokens = speech.tokens.model_dump()
            listed = (*tokens.pop("languages").values(), *tokens.pop("suppressed"), *tokens.pop("suppressed_first"))
            if max((*listed, *tokens.values())) >= speech.vocabulary_size:
                raise ValueError("speech_decoder.tokens holds a token id outside the vocabulary")
            if speech.max_states < self.max_audio_s * self.encoder.states_per_s:
                raise ValueError("speech_decoder.max_states is less than what max_audio_s of audio has")
        return self

    def _check_parts(self) -> None:
        """Require an LLM with a prompt or a speech decoder, and for an LLM something that it gets of the speech."""
        if (self.llm is None) != (self.prompt is None):
            raise ValueError("llm and prompt go together, and one of them is missing")
        if self.transcripts is not None and self.transcripts.marker >= (self.llm.vocabulary_size if self.llm else 0):
            raise ValueError("transcripts.marker is no token of an llm")
        writes = self.projector is not None and self.projector.writes
        if self.llm is None and self.speech_decoder is None and not writes:
            raise ValueError("there is neither an llm nor a speech_decoder, nor a projector that writes transcripts")
        if writes and (self.llm is not None or self.speech_decoder is not None):
            raise ValueError("projector writes transcripts, beside an llm or a speech_decoder")
        if self.llm is not None and self.bridge == "frames" and self.projector is None:
            raise ValueError("projector is missing, which bridge needs")
        if self.llm is not None and self.bridge == "transcript" and self.speech_decoder is None:
            raise ValueError("there is no speech_decoder for bridge or projector.vocabulary")

    def _check_projector(self, projector: ProjectorSection) -> None:
        if projector.encoder_width != self.encoder.width:
            raise ValueError("projector.encoder_width differs from encoder.width")
        if self.speech_decoder is None and projector.vocabulary == "speech_decoder":
            raise ValueError("there is no speech_decoder for bridge or projector.vocabulary")
        if projector.vocabulary == "own" and not projector.writes:
            raise ValueError("projector.vocabulary is own, which a projector of this architecture does not have")
        if projector.vocabulary == "speech_decoder" and projector.table is None:
            raise ValueError("projector.table is missing, which projector.vocabulary needs")
        if self.llm and self.bridge == "frames" and projector.embedding_size != self.llm.embedding_size:
            raise ValueError("projector.embedding_size differs from llm.embedding_size")

    @staticmethod
    def _check_prompt(llm: LlmSection, prompt: PromptSection) -> None:
        fixed = (*prompt.prefix, *prompt.after_instruction, *(prompt.after_speech or ()), *prompt.suffix, *prompt.end_tokens)
        fixed = (*fixed, *(prompt.transcription or ()), *prompt.transcription_end)
        named = (*prompt.languages.values(), *prompt.published.values())
        fixed = (*fixed, *(token for tokens in named for token in tokens))
        if max(fixed) >= llm.vocabulary_size:
            raise ValueError("prompt holds a token id outside the vocabulary")

    def require_llm(self) -> LlmSection:
        """Return the LLM's section. Raises `ValueError` if there is none."""
        if self.llm is None:
            raise ValueError("the bundle has no LLM")
        return self.llm

    def require_prompt(self) -> PromptSection:
        """Return the LLM's prompt. Raises `ValueError` if there is no LLM."""
        if self.prompt is None:
            raise ValueError("the bundle has no LLM")
        return self.prompt

    def require_projector(self) -> ProjectorSection:
        """Return the projector's section. Raises `ValueError` if there is none."""
        if self.projector is None:
            raise ValueError("the bundle has no projector")
        return self.projector

    @property
    def transcription_instructions(self) -> tuple[str, ...] | None:
        """The instructions that are known to ask for a transcript; None means that every one does."""
        if self.projector is not None:
            return self.projector.boundary_instructions
        return self.speech_decoder.transcription_instructions if self.speech_decoder else ()

    def transcribes(self, instruction: str) -> bool:
        """Return whether an instruction is answered utterance by utterance: it asks for a transcript, or there is no LLM."""
        return self.llm is None or self.transcripts is not None or is_transcription(instruction, self.transcription_instructions)

    def named_files(self) -> set[str]:
        """Return the files that the sections name."""
        named = {self.encoder.graph, self.voice.graph}
        if projector := self.projector:
            named |= projector.named_files()
        if self.llm:
            named |= self.llm.named_files()
        if speech := self.speech_decoder:
            named |= {speech.graph, speech.memory_graph, speech.embedding, speech.tokeniser}
        return named | {plan.file for plan in self.plans}


class Manifest(BundleDescription):
    """`bundle.json`."""

    files: dict[FileName, FileEntry]


def migrate(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a `bundle.json` of version 2 as version 3 has it; wrong content stays wrong."""
    migrated = {**content, "schema_version": SCHEMA_VERSION}
    adapter, encoder = migrated.pop("adapter", None), content.get("encoder")
    if adapter is not None:
        width = encoder.get("width") if isinstance(encoder, dict) else None
        same = {"architecture": "subsample_ctc", "encoder_width": width}
        migrated["projector"] = {**same, **adapter} if isinstance(adapter, dict) else adapter
    return migrated
