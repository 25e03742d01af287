"""A checkpoint on its way into a bundle: the options, the folder, and what every family's description shares."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.bundle_parts import MAX_AUDIO_S, voice_section
from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.hub import Hub
from models.bundle.schema import BundleDescription
from models.features.log_mel import SAMPLE_RATE_HZ

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
