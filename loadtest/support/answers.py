"""The recordings of a load test, and checks of the answers about them."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.words import word_error_rate

FINISH_REASONS = {"stop", "length", "no_speech"}


@dataclass(frozen=True)
class Clip:
    """A recording and the words in it."""

    name: str
    audio: bytes
    text: str


def read_clips(index: Path) -> list[Clip]:
    """Read the clips of an index: a JSON list of objects with `file`, beside the index, and `text`.

    Raises `ValueError` if there are none.
    """
    entries = json.loads(index.read_text(encoding="utf-8"))
    clips = [Clip(entry["file"], (index.parent / entry["file"]).read_bytes(), entry["text"]) for entry in entries]
    if not clips:
        raise ValueError(f"{index} lists no clips")
    return clips


class AnswerChecker:
    """Checks answers and remembers the first to each question, because load must not change an answer. Thread-safe."""

    def __init__(self, max_word_error_rate: float) -> None:
        self._max_word_error_rate = max_word_error_rate
        self._first: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def complaint(self, clip: Clip, instruction: str, status: int, body: bytes) -> str:
        """Return what is wrong with an answer; an empty string if nothing is."""
        if status != 200:
            return f"status {status}"
        try:
            text = _text_of(json.loads(body))
        except (ValueError, KeyError, TypeError) as error:
            return f"the reply has not the right shape: {error!r}"
        with self._lock:
            first = self._first.setdefault((clip.name, instruction), text)
        if text != first:
            return f"the answer changed: {clip.name}, {instruction!r}"
        if instruction == TRANSCRIBE:
            rate = word_error_rate([clip.text], [text])
            if rate > self._max_word_error_rate:
                return f"word error rate {rate:.2f} of {clip.name} is above {self._max_word_error_rate:.2f}"
        return ""


def _text_of(reply: dict[str, Any]) -> str:
    text, usage = reply["text"], reply["usage"]
    if not isinstance(text, str) or reply["finish_reason"] not in FINISH_REASONS:
        raise ValueError("text or finish_reason")
    if usage["total_tokens"] != usage["audio_frames"] + usage["text_tokens"] + usage["output_tokens"]:
        raise ValueError("usage does not add up")
    if not reply["audio_s"] > 0 or not reply["times_ms"]["total_ms"] > 0:
        raise ValueError("audio_s or total_ms")
    return text


def last_event(text: str) -> str:
    """Return the type of the last server-sent event, or a word about why there is none."""
    lines = [line for line in text.splitlines() if line.startswith("data: ")]
    if not lines:
        return "missing"
    try:
        return str(json.loads(lines[-1].removeprefix("data: "))["type"])
    except (ValueError, KeyError):
        return "not readable"
