"""The schema of `bundle.json`, version 3: the sections of a bundle, and what they require of each other.

`architecture` names a family of `models.registry`, whose section class reads that section.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from models.bundle.sections import (
    EncoderDecoderSection,
    EncoderSection,
    FileEntry,
    FileName,
    LlmSection,
    ModelSection,
    PlanSection,
    ProjectorSection,
    PromptSection,
    SearchSection,
    Section,
    SpeechDecoderSection,
    TranscriptsSection,
    VoiceSection,
)
from models.registry import ENCODERS, LLMS, PROJECTORS, SPEECH_DECODERS, UnknownNameError, look_up
from models.text.tokeniser import is_transcription

SCHEMA_VERSION: Final = 3

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


def _token_ids(value: Any) -> Iterator[int]:
    """Yield the numbers in the values of a section about tokens."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _token_ids(each)


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
        if self.llm and self.prompt and max(_token_ids(self.prompt.model_dump())) >= self.llm.vocabulary_size:
            raise ValueError("prompt holds a token id outside the vocabulary")
        if self.voice.sample_rate_hz != self.sample_rate_hz:
            raise ValueError("voice.sample_rate_hz differs from sample_rate_hz")
        if speech := self.speech_decoder:
            if max(_token_ids(speech.tokens.model_dump())) >= speech.vocabulary_size:
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
        if projector.search:
            self._check_search(projector, projector.search)

    def _check_search(self, projector: ProjectorSection, search: SearchSection) -> None:
        if not projector.drafts or projector.vocabulary != "llm" or self.bridge != "frames":
            raise ValueError("projector.search needs a draft in the tokens of an llm that gets its frames")
        if self.llm is None or isinstance(self.llm, EncoderDecoderSection):
            raise ValueError("projector.search needs an llm without an encoder of its own")
        if max(*search.context, search.end_token) >= self.llm.vocabulary_size:
            raise ValueError("projector.search holds a token id outside the vocabulary")
        if len(search.context) >= self.llm.max_positions:
            raise ValueError("projector.search.context is longer than a slot")

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
