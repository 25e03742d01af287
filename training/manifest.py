"""Utterances as JSON lines: the one format that every training stage reads and writes."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Utterance:
    """One piece of speech with the text that the adapter should learn for it.

    `audio` is relative to the folder of the manifest that names it. `source` says where the text
    came from: `given`, `whisper` (labelled by Whisper base) or `synthesis`.
    """

    id: str
    audio: str
    text: str
    dataset: str
    source: str
    speaker: str
    duration_s: float


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write atomically, so that an interrupted stage leaves no half manifest behind."""
    partial = path.with_suffix(".partial")
    with partial.open("w") as out:
        for utterance in utterances:
            out.write(json.dumps(asdict(utterance)) + "\n")
    partial.replace(path)


def read_manifest(path: Path) -> Iterator[Utterance]:
    with path.open() as lines:
        for line in lines:
            yield Utterance(**json.loads(line))
