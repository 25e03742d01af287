"""What `thinbridge mic` shows: one line per answer, on a terminal the text so far below them, or every event as JSON."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

DIM, PLAIN, REWRITE = "\x1b[2m", "\x1b[22m", "\r\x1b[K"


@dataclass(frozen=True)
class Waits:
    """Seconds that a speaker waited: after the end of the speech for the answer, after its onset for the first text."""

    final_s: float
    first_text_s: float | None


class View(Protocol):
    def show(self, event: Mapping[str, Any], received_s: float, waits: Waits | None) -> None:
        """An event of the session, so many seconds after its beginning; answers come with what was waited for them."""
        ...


class JsonView:
    """Every event as it came, with the second of its arrival in front."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, event: Mapping[str, Any], received_s: float, _waits: Waits | None) -> None:
        print(json.dumps({"received_s": round(received_s, 3), **event}, ensure_ascii=False), file=self._out, flush=True)


class TextView:
    """One line per answer; on a terminal also the text so far: what stands plain, what may change dim."""

    def __init__(self, out: TextIO, is_terminal: bool) -> None:
        self._out, self._is_terminal = out, is_terminal

    def show(self, event: Mapping[str, Any], _received_s: float, waits: Waits | None) -> None:
        if event["type"] == "partial" and self._is_terminal:
            self._write(REWRITE + fit(event["stable"], event["tail"], shutil.get_terminal_size().columns - 1))
        elif event["type"] == "final" and waits is not None:
            self._write(f"{REWRITE if self._is_terminal else ''}{self._line(event, waits)}\n")

    def _line(self, event: Mapping[str, Any], waits: Waits) -> str:
        first_text = "" if waits.first_text_s is None else f", first text after {1000 * waits.first_text_s:.0f}"
        note = f"[answer after {1000 * waits.final_s:.0f} ms{first_text}]"
        text = event["text"] or f"({event['finish_reason']})"
        return f"{event['start_s']:7.2f} s  {text}  {f'{DIM}{note}{PLAIN}' if self._is_terminal else note}"

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def fit(stable: str, tail: str, columns: int) -> str:
    """One line of at most so many columns: the end of the text, its tail dim. Control characters are left out."""
    stable, tail = (("".join(letter for letter in text if letter.isprintable())) for text in (stable, tail))
    if len(stable) + len(tail) > columns:
        stable = "…" + stable[max(0, len(stable) + len(tail) - columns + 1) :]
        tail = tail[: columns - len(stable)]
    return f"{stable}{DIM}{tail}{PLAIN}"
