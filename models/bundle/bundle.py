"""A model bundle: a folder of graphs, tables and a tokeniser that `bundle.json` describes and vouches for byte by byte.

`open_bundle` is the only way to a bundle. It returns one that is complete and unchanged, or raises `BundleError`.
"""

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from models.text.tokeniser import plain_words

SCHEMA_VERSION: Final = 2
MANIFEST_NAME = "bundle.json"
MAX_MANIFEST_BYTES = 2**20
HOW_TO_FIX = "Rebuild the default bundle with `python -m export.default_bundle --rebuild`; get others from where they came from."


class BundleError(ValueError):
    """The bundle cannot be used. The message, for the operator, names the file that is wrong and what to do."""

    def __init__(self, folder: Path, file: str, problem: str) -> None:
        super().__init__(f"Bundle {folder}: {file} {problem}. {HOW_TO_FIX}")
        self.file = file
        self.problem = problem


def _require_plain_name(name: str) -> str:
    """Relative, forward slashes, no part that starts with a dot: what can neither leave the folder nor hide in it."""
    part = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
    if not re.fullmatch(rf"{part}(/{part})*", name):
        raise ValueError(f"{name!r} is not the plain name of a file inside the bundle")
    return name


FileName = Annotated[str, AfterValidator(_require_plain_name)]
TokenIds = tuple[NonNegativeInt, ...]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EncoderSection(Section):
    """The frozen speech encoder: log-mel features in, `states_per_s` states of `width` out."""

    architecture: Literal["whisper"]
    precision: str
    graph: FileName
    mel_bins: PositiveInt
    width: PositiveInt
    states_per_s: PositiveFloat


class AdapterSection(Section):
    """The trained adapter: every `subsampling`-th state in, frames of `embedding_size` out.

    `weights` are what it was built from, its boundary vectors among them (safetensors). Those are put around the speech under
    `boundary_instructions`, whatever their case and punctuation; None means under every instruction.
    """

    precision: str
    graph: FileName
    weights: FileName
    subsampling: PositiveInt
    boundary_instructions: tuple[str, ...] | None = None
    embedding_size: PositiveInt

    def transcribes(self, instruction: str) -> bool:
        """Whether an instruction is known to ask for a transcript: the boundary vectors were trained under it."""
        known = self.boundary_instructions
        return known is None or plain_words(instruction) in map(plain_words, known)


class LlmSection(Section):
    """The frozen LLM. `embedding` is its input embedding table [vocabulary_size, embedding_size]."""

    architecture: Literal["llama"]
    precision: str
    graph: FileName
    embedding: FileName
    tokeniser: FileName
    layers: PositiveInt
    key_value_heads: PositiveInt
    head_size: PositiveInt
    embedding_size: PositiveInt
    vocabulary_size: PositiveInt
    max_positions: PositiveInt


class PromptSection(Section):
    """Token ids of `[prefix][instruction][after_instruction] speech [suffix]`, and those that end an answer."""

    prefix: TokenIds
    after_instruction: TokenIds
    suffix: TokenIds
    end_tokens: TokenIds = Field(min_length=1)


class VoiceSection(Section):
    """The voice detector: the probability of speech in each window of `window_samples` at `sample_rate_hz`, the bundle's."""

    architecture: Literal["silero"]
    graph: FileName
    sample_rate_hz: PositiveInt
    window_samples: PositiveInt


class PlanSection(Section):
    """A TensorRT plan of one part, good for the builder's exact version and the GPU architecture (such as `sm_90`) that it names.

    `profiles` are the plan's optimisation profiles in order: smallest, best and largest size of each free dimension of the
    graph, by its name (`export.tensorrt_profiles`). `max_positions` is the slots' length, 0 in parts without slots.
    `activation_bytes` are between the kernels of its largest step, 0 where nobody knows.
    """

    part: str
    file: FileName
    builder: Literal["tensorrt", "tensorrt_rtx", "simulated"]
    builder_version: str
    gpu: str = Field(pattern=r"^sm_[0-9]{2,3}$")
    precision: str
    max_positions: NonNegativeInt
    activation_bytes: NonNegativeInt = 0
    profiles: tuple[dict[str, tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]], ...] = Field(min_length=1)


class FileEntry(Section):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: NonNegativeInt


class BundleDescription(Section):
    """All of `bundle.json` but the list of files, which `write_bundle` makes."""

    schema_version: Literal[2] = SCHEMA_VERSION
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    created: datetime
    sample_rate_hz: PositiveInt
    max_audio_s: PositiveFloat
    encoder: EncoderSection
    adapter: AdapterSection
    llm: LlmSection
    prompt: PromptSection
    voice: VoiceSection
    licences: dict[str, str] = Field(min_length=1)
    plans: tuple[PlanSection, ...] = ()

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.adapter.embedding_size != self.llm.embedding_size:
            raise ValueError("adapter.embedding_size differs from llm.embedding_size")
        if self.voice.sample_rate_hz != self.sample_rate_hz:
            raise ValueError("voice.sample_rate_hz differs from sample_rate_hz")
        prompt = self.prompt
        if max((*prompt.prefix, *prompt.after_instruction, *prompt.suffix, *prompt.end_tokens)) >= self.llm.vocabulary_size:
            raise ValueError("prompt holds a token id outside the vocabulary")
        return self

    def named_files(self) -> set[str]:
        """The files that the sections name."""
        encoder, adapter, llm = self.encoder, self.adapter, self.llm
        named = {encoder.graph, adapter.graph, adapter.weights, llm.graph, llm.embedding, llm.tokeniser, self.voice.graph}
        return named | {plan.file for plan in self.plans}


class Manifest(BundleDescription):
    """`bundle.json`."""

    files: dict[FileName, FileEntry]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: `folder` is absolute, and every file that `manifest` names is in it, unchanged."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Where a listed file lies. Raises `KeyError` for any other name."""
        if name not in self.manifest.files:
            raise KeyError(name)
        return self.folder / name


def open_bundle(folder: Path) -> Bundle:
    """Read and verify a bundle, hash of every file included. Raises `BundleError`."""
    folder = folder.resolve()
    manifest = _read_manifest(folder)
    for name in sorted(set(_names_in(folder)) - {MANIFEST_NAME, *manifest.files}):
        raise BundleError(folder, name, f"is not listed in {MANIFEST_NAME}")
    for name in sorted(manifest.named_files() - manifest.files.keys()):
        raise BundleError(folder, name, f"is used by a section of {MANIFEST_NAME} but not listed under its files")
    for name, entry in manifest.files.items():
        _verify_file(folder, name, entry)
    return Bundle(folder, manifest)


def write_bundle(folder: Path, description: BundleDescription) -> Bundle:
    """Describe a folder whose files are all in place. `bundle.json` appears last and whole, so a crash leaves no valid bundle.

    Raises `BundleError` where a section names a file that is not there.
    """
    folder = folder.resolve()
    names = sorted(set(_names_in(folder)) - {MANIFEST_NAME})
    files = {name: FileEntry(sha256=_sha256(folder / name), bytes=(folder / name).stat().st_size) for name in names}
    for name in sorted(description.named_files() - files.keys()):
        raise BundleError(folder, name, "is missing")
    manifest = Manifest(**dict(description), files=files)
    temporary = folder / f"{MANIFEST_NAME}.partial"
    # Without plans there is no such section, so that releases that know none read the bundle too.
    left_out = None if manifest.plans else {"plans"}
    temporary.write_text(manifest.model_dump_json(indent=2, exclude=left_out) + "\n", encoding="utf-8")
    os.replace(temporary, folder / MANIFEST_NAME)
    return Bundle(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise BundleError(folder, "the folder", "does not exist")
    _require_own_file(folder, MANIFEST_NAME)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(folder, MANIFEST_NAME, f"is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(folder, MANIFEST_NAME, f"cannot be read ({error.strerror})") from None
    try:
        version = json.loads(text)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(folder, MANIFEST_NAME, "is not a JSON object with a schema_version") from None
    if version != SCHEMA_VERSION:
        raise BundleError(folder, MANIFEST_NAME, f"has schema version {version!r}, this release reads {SCHEMA_VERSION}")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(folder, MANIFEST_NAME, f"is not valid: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    """The first problem: where, and what."""
    detail = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in detail["loc"])
    return ": ".join(part for part in (place, detail["msg"]) if part)


def _names_in(folder: Path) -> list[str]:
    return [(Path(root) / file).relative_to(folder).as_posix() for root, _, files in os.walk(folder) for file in files]


def _require_own_file(folder: Path, name: str) -> os.stat_result:
    """A regular file that lies in the folder itself and has no second name elsewhere."""
    path = folder / name
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(folder, name, "is missing") from None
    if stat.S_ISLNK(status.st_mode) or path.resolve() != path:
        raise BundleError(folder, name, "is reached by a symbolic link, which a bundle may not hold")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(folder, name, "is not a regular file")
    if status.st_nlink != 1:
        raise BundleError(folder, name, "is a hard link to a file that has another name too")
    return status


def _verify_file(folder: Path, name: str, entry: FileEntry) -> None:
    size = _require_own_file(folder, name).st_size
    if size != entry.bytes:
        raise BundleError(folder, name, f"is {size} bytes long where {MANIFEST_NAME} says {entry.bytes}")
    try:
        digest = _sha256(folder / name)
    except OSError as error:
        raise BundleError(folder, name, f"cannot be read ({error.strerror})") from None
    if digest != entry.sha256:
        raise BundleError(folder, name, f"is damaged: its sha256 is not the one in {MANIFEST_NAME}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
