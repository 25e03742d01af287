"""The sections of `bundle.json`: what a bundle declares of each of its models.

A family's own section adds the values that the family needs. At load each declared value is compared with the graph
(`graph_values`), so that a wrong one is a `BundleError` and not a wrong text.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from models.registry import VADS, require_known

Shapes = Mapping[str, Sequence[Any]]
"""The shapes of a graph's inputs and outputs by name; a dimension that is not an int is free."""
GraphValues = Mapping[str, Any]


def count_layers(shapes: Shapes, kind: str) -> int:
    """Return how many layers a decoder's graph has, by the names of a kind of inputs or outputs: `key_0`, `key_1` and so on."""
    return sum(re.fullmatch(rf"{kind}_[0-9]+", name) is not None for name in shapes)


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
    """An encoder whose front end takes only `mel_bins`, and puts `STACKED` frames of them into one."""

    STACKED: ClassVar[int] = 1
    mel_bins: PositiveInt

    def feature_options(self) -> dict[str, Any]:
        return {"mel_bins": self.mel_bins}

    def graph_values(self, shapes: Shapes) -> GraphValues:
        bins = dimension(shapes, "features", 0)
        return {"mel_bins": bins // self.STACKED if isinstance(bins, int) else bins, "width": dimension(shapes, "states", 1)}


class SearchSection(Section):
    """How a draft is searched again with the LLM, as `models.text.joint_search.JointSearch` has it, with `hypotheses` at once."""

    hypotheses: PositiveInt
    ctc_weight: float = Field(ge=0, le=1)
    token_bonus: NonNegativeFloat
    margin: PositiveFloat
    context: TokenIds = Field(min_length=1)
    end_token: NonNegativeInt


class ProjectorSection(ModelSection):
    """A projector: one frame of `embedding_size` out of `subsampling` encoder states of `encoder_width`.

    One that `drafts` gives a CTC transcript too; one that `reads_padding` gets the states of the silence behind the audio. Only
    our own has `weights`, the trained file (safetensors), which holds the boundary vectors too. Those are put around the speech
    under `boundary_instructions`, regardless of case and punctuation; None means under every instruction. The draft is in the
    tokens of `vocabulary`, and scored against `table`, by default the LLM's embeddings. One that `writes`, in tokens of its
    `own`, gives the answers of a bundle that has neither an LLM nor a speech decoder. With a `search` the draft is the transcript
    that adapter and LLM find together, and the frames are its tokens.
    """

    drafts: ClassVar[bool] = False
    reads_padding: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    weights: FileName | None = None
    encoder_width: PositiveInt
    subsampling: PositiveInt
    embedding_size: PositiveInt
    boundary_instructions: tuple[str, ...] | None = None
    vocabulary: Literal["llm", "speech_decoder", "own"] = "llm"
    table: FileName | None = None
    search: SearchSection | None = None

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


class EncoderDecoderSection(LlmSection):
    """An LLM of encoder and decoder: `memory_graph` reads a prompt of at most `max_states` positions, `graph` attends to that.

    An answer begins behind `start_token` at position 0 of its slot, so `max_positions` are those of the answer alone.
    """

    memory_graph: FileName
    max_states: PositiveInt
    start_token: NonNegativeInt

    def memory_values(self, shapes: Shapes) -> GraphValues:
        """Return the memory graph's own values, as `graph_values` does the graph's."""
        raise NotImplementedError

    def named_files(self) -> set[str]:
        return super().named_files() | {self.memory_graph}


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
