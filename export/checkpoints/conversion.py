"""A checkpoint on its way into a bundle: the options, the folder, and what every family's description shares."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from export.bundle_parts import MAX_AUDIO_S, TRANSCRIPTION_INSTRUCTIONS, speech_precision, voice_section
from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.hub import Hub
from export.precisions import PRECISIONS, Precision
from models.bundle.schema import BundleDescription
from models.bundle.sections import EncoderSection, ProjectorSection
from models.features.log_mel import SAMPLE_RATE_HZ
from models.graph.linear import INT8, Linear, block_linear, float32_linear
from models.graph.writer import GraphBuilder

AnyEncoder = TypeVar("AnyEncoder", bound=EncoderSection)

VOICE_LICENCE = "MIT, Copyright (c) 2020-present Silero Team"


@dataclass(frozen=True)
class PullOptions:
    """How a model is pulled.

    Whisper hears the silence of a whole window behind the speech; with `condenses_silence` it does so for a part of the time, and
    its states are nearly the same (`models.graph.silent_rest.SilentRest`). `name` is its name in the store, by default after the
    checkpoint. Through an `adapter`, a trained file, an LLM hears the speech; without one it reads the transcript.
    """

    precision: str
    condenses_silence: bool = False
    name: str | None = None
    adapter: Path | None = None


@dataclass(frozen=True)
class Conversion:
    """A bundle on its way: its files go into `folder`; `hub` gets further checkpoints that it needs."""

    folder: Path
    name: str
    options: PullOptions
    hub: Hub

    @property
    def precision(self) -> Precision:
        """How products are written."""
        return PRECISIONS[self.options.precision]

    @property
    def block_linear(self) -> Linear:
        """How the products of encoders with channels of very different sizes are written: in blocks, which stand them."""
        return float32_linear if self.options.precision == "fp32" else block_linear(INT8)

    def save_encoder(self, graph: GraphBuilder, kind: type[AnyEncoder], architecture: str, **values: Any) -> AnyEncoder:
        """Write an encoder's graph, and return its section with the family's own values."""
        graph.save(self.folder / "encoder.onnx")
        precision = speech_precision(self.options.precision)
        return kind(architecture=architecture, precision=precision, graph="encoder.onnx", **values)

    def save_projector(
        self, graph: GraphBuilder, kind: type[ProjectorSection], architecture: str, encoder_width: int, **values: Any
    ) -> ProjectorSection:
        """Write a projector's graph, and return its section. It subsamples by 1, unless the `values` say something else."""
        graph.save(self.folder / "projector.onnx")
        own = {"subsampling": 1, "boundary_instructions": TRANSCRIPTION_INSTRUCTIONS, **values}
        precision = speech_precision(self.options.precision)
        return kind(architecture=architecture, precision=precision, graph="projector.onnx", encoder_width=encoder_width, **own)

    def describe(self, **sections: Any) -> BundleDescription:
        """Return a description with these sections."""
        licences = {"Silero VAD": VOICE_LICENCE, **sections.pop("licences")}
        return BundleDescription(
            name=self.name,
            created=datetime.now(UTC),
            sample_rate_hz=SAMPLE_RATE_HZ,
            max_audio_s=MAX_AUDIO_S,
            voice=voice_section(),
            licences=licences,
            **sections,
        )


def read_licence(checkpoint: Checkpoint) -> str:
    """Return the licence that the head of a model card names."""
    named = (line.removeprefix("license:").strip() for line in _card_head(checkpoint) if line.startswith("license:"))
    return next(named, "not named by the checkpoint")


def read_languages(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the codes of the languages that the head of a model card names."""
    codes: list[str] = []
    is_listed = False
    for line in _card_head(checkpoint):
        if line.startswith("language:"):
            codes += [line.removeprefix("language:").strip(" '\"")]
            is_listed = True
        elif is_listed and line.lstrip().startswith("- "):
            codes += [line.strip().removeprefix("- ").strip(" '\"")]
        else:
            is_listed = False
    return tuple(code.lower() for code in codes if code)


def _card_head(checkpoint: Checkpoint) -> list[str]:
    """Return the lines of a model card between its first two lines of dashes."""
    lines = (checkpoint.folder / "README.md").read_text("utf-8", "replace").splitlines() if checkpoint.has("README.md") else []
    return lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
