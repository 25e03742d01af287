"""Utterances as JSON lines: the one format that every training stage reads and writes."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from training.instructions import TRANSCRIBE

EXAMPLE = '{"audio": "a.wav", "instruction": "Transcribe.", "text": "Good morning."}'


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One piece of speech with the text that the adapter should learn for it: the answer to `instruction`.

    `audio` is relative to the folder of the manifest that names it, and stands for the `id` where there is none. `source` says
    where the text came from: `given`, `whisper` (labelled by Whisper base) or `synthesis`.
    """

    audio: str
    text: str
    instruction: str = TRANSCRIBE[0]
    id: str = ""
    dataset: str = ""
    source: str = "given"
    speaker: str = ""
    duration_s: float = 0.0


class ManifestError(ValueError):
    """A line of a manifest is not one. The message says which, in a sentence."""


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write atomically, so that an interrupted stage leaves no half manifest behind."""
    partial = path.with_suffix(".partial")
    with partial.open("w") as out:
        for utterance in utterances:
            out.write(json.dumps(asdict(utterance)) + "\n")
    partial.replace(path)


def read_manifest(path: Path) -> Iterator[Utterance]:
    """Yield the utterances. Raises `ManifestError`."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                utterance = Utterance(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ManifestError(f"line {number} of {path} is no utterance such as {EXAMPLE}: {error}") from None
            yield utterance if utterance.id else replace(utterance, id=utterance.audio)
