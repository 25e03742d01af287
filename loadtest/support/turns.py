"""Systems that answer about the same recordings in turns, so that the machine's moods hit all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

Row = Mapping[str, Any]
System = Callable[[Row], Mapping[str, Any] | None]
"""Returns the reply about a recording, with its `text`, or None where the system cannot answer about that."""


@dataclass(frozen=True)
class Answer:
    """A system's reply about one recording, `row` of a manifest, and how long it took."""

    row: Row
    reply: Mapping[str, Any]
    elapsed_s: float

    @property
    def text(self) -> str:
        return str(self.reply["text"])


def take_turns(rows: Sequence[Row], systems: Mapping[str, System]) -> dict[str, list[Answer]]:
    """Return by system its answers about the recordings, in their order."""
    answers: dict[str, list[Answer]] = {name: [] for name in systems}
    for row in tqdm(rows, desc="recordings"):
        for name, ask in systems.items():
            started_s = time.perf_counter()
            if (reply := ask(row)) is not None:
                answers[name].append(Answer(row, reply, time.perf_counter() - started_s))
    return answers


def group_by_set(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Return answers by the set that their recordings belong to."""
    return {
        name: [each for each in answers if each.row["set"] == name] for name in dict.fromkeys(each.row["set"] for each in answers)
    }


def list_for_json(answers: Mapping[str, Sequence[Answer]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return by system and set the parts of each answer that a file of results holds."""
    return {
        name: {
            set_name: [{"file": each.row["file"], "text": each.text, "elapsed_s": each.elapsed_s} for each in group]
            for set_name, group in group_by_set(of_system).items()
        }
        for name, of_system in answers.items()
    }
