"""A spoken request with an answer that can be checked, as a line of JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["fact", "question", "topic", "intent", "yes_no", "list", "summary", "slots", "translation"]
Half = Literal["reported", "tuning"]
VOICES = {
    "en": ("af_bella", "am_michael", "bf_emma", "bm_george", "af_nova", "am_fenrir", "bf_lily", "bm_daniel"),
    "es": ("ef_dora", "em_alex"),
    "fr": ("ff_siwis",),
    "it": ("if_sara", "im_nicola"),
}
"""Voices of Kokoro that are kept for this benchmark: nothing may be trained on them."""


@dataclass(frozen=True)
class SpokenRequest:
    """A text that is said, an instruction about it, and the content of a right answer.

    `expected` is a list of facts, each a list of the words that stand for it: a right answer has one of each. For `topic`,
    `intent` and `yes_no` it is one of the `options`, with `is_choice` the only answers that are allowed, for `translation` the
    reference, and for `slots` it is empty and `slots` are the values under `json_schema`. `recording` is a file of the data set;
    where there is none the text is spoken by `voice`. Requests with the same text and voice share `audio`. Prompts are tuned on
    the `tuning` half, and the other one is reported.
    """

    id: str
    half: Half
    kind: Kind
    text: str
    language: str
    instruction: str
    expected: list[list[str]]
    options: list[str]
    slots: dict[str, str]
    is_choice: bool
    json_schema: dict[str, Any] | None
    recording: str | None
    voice: str | None
    speed: float
    seed: int
    audio: str


def write_requests(path: Path, requests: Iterable[SpokenRequest]) -> None:
    """Write one request a line."""
    lines = [json.dumps(asdict(request), ensure_ascii=False) + "\n" for request in requests]
    path.write_text("".join(lines), encoding="utf-8")


def read_requests(path: Path) -> list[SpokenRequest]:
    """Return the requests of a file that `write_requests` wrote."""
    return [SpokenRequest(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
