"""The recordings that are committed for tests, with their texts."""

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "clips"


@dataclass(frozen=True)
class ClipFile:
    file: str
    text: str
    licence: str
    source: str


CLIPS = [ClipFile(**row) for row in json.loads((FOLDER / "clips.json").read_text())]


def clip_path(clip: ClipFile) -> Path:
    return FOLDER / clip.file
