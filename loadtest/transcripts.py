"""Word error rates of a server over HTTP, and time to a transcript, beside peers that take turns with it.

    python -m loadtest.transcripts --url http://127.0.0.1:8000 --data DATA_DIR --peer WHISPER_CT2_DIR --moonshine

Each recording of the manifest is posted once, one at a time. English is compared after Whisper's normaliser, other languages
without case and punctuation. `--peer` is faster-whisper base in 8 bits, beam 1, with the language given: it is not asked to find
it out. `--moonshine` is Moonshine tiny in ONNX Runtime, for English.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx
from tqdm import tqdm
from whisper_normalizer.english import EnglishTextNormalizer

from loadtest.peers.transcribers import Transcribe, load_faster_whisper, load_moonshine
from loadtest.support import markdown
from loadtest.support.asking import ask_about, open_client
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.options import add_eval_flag, add_url_flag, new_parser
from loadtest.support.recordings import read_rows, take_per_set
from loadtest.support.words import MakeWords, plain_words, word_error_rate

SERVER = "server"
ENGLISH_ONLY = ("Moonshine tiny",)
FIVE_S = (4.0, 6.0)
"""Recordings of about 5 s, whose time is told by itself."""


@dataclass
class Column:
    """One system's transcripts of one set."""

    references: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    elapsed_s: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    audio_s: list[float] = field(default_factory=list)

    @property
    def runaways(self) -> int:
        """Transcripts with more than twice as many words as the reference."""
        pairs = zip(self.references, self.texts, strict=True)
        return sum(len(plain_words(text).split()) > 2 * len(plain_words(reference).split()) for reference, text in pairs)


def language_of(name: str) -> str:
    """Return the language of a set by its name: `common_voice_de` and `to_en_es` end with it, the others are English."""
    found = re.fullmatch(r"(?:common_voice|to_en)_([a-z]{2})", name)
    return found.group(1) if found else "en"


def measure(
    rows: Sequence[dict[str, Any]], data: Path, client: httpx.Client, peers: dict[str, Transcribe], *, tell_language: bool
) -> dict[str, dict[str, Column]]:
    """Return by system and set the texts and times of every recording; the systems take turns."""
    results: dict[str, dict[str, Column]] = {name: {} for name in (SERVER, *peers)}
    for row in tqdm(rows, desc="recordings"):
        file, language = data / row["file"], language_of(row["set"])
        for name, of_system in results.items():
            if name in ENGLISH_ONLY and language != "en":
                continue
            column = of_system.setdefault(row["set"], Column())
            started_s = time.perf_counter()
            if name == SERVER:
                reply = ask_about(client, file, TRANSCRIBE, language=language if tell_language else None)
                text, passes = reply["text"], reply["speculation"]["llm_passes"]
            else:
                text, passes = peers[name](file, language), 0
            column.elapsed_s.append(time.perf_counter() - started_s)
            column.references.append(row["text"])
            column.texts.append(text)
            column.passes.append(passes)
            column.audio_s.append(row["duration_s"])
    return results


def report(results: dict[str, dict[str, Column]]) -> list[str]:
    """Return the table as lines of Markdown."""
    english: MakeWords = EnglishTextNormalizer()
    head = ["set", "clips"]
    for name in results:
        head += [f"{name}: WER", "runaways", "p50, ms"]
    rows = []
    for set_name, column in results[SERVER].items():
        cells: list[Any] = [f"`{set_name}`", len(column.texts)]
        normalise = english if language_of(set_name) == "en" else plain_words
        for of_system in results.values():
            if (each := of_system.get(set_name)) is None:
                cells += ["", "", ""]
                continue
            error_rate = word_error_rate(each.references, each.texts, normalise)
            cells += [f"{100 * error_rate:.1f} %", each.runaways, round(1000 * median(each.elapsed_s))]
        rows.append([*cells, f"{mean(column.passes):.1f}"])
    return markdown.table([*head, "passes"], rows)


def report_five_seconds(results: dict[str, dict[str, Column]]) -> list[str]:
    """Return a line for each system about English recordings of about 5 s."""
    lines = []
    for name, of_system in results.items():
        times_s = [
            elapsed_s
            for set_name, column in of_system.items()
            for elapsed_s, audio_s in zip(column.elapsed_s, column.audio_s, strict=True)
            if language_of(set_name) == "en" and FIVE_S[0] <= audio_s <= FIVE_S[1]
        ]
        if times_s:
            p50_ms = 1000 * median(times_s)
            lines.append(f"{name}: p50 {p50_ms:.0f} ms for {len(times_s)} English recordings of {FIVE_S[0]:g} to {FIVE_S[1]:g} s")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add_url_flag(parser)
    add_eval_flag(parser)
    parser.add_argument("--sets", help="comma-separated; default: all that have a text")
    parser.add_argument("--per-set", type=int, default=1000, help="recordings of each set; default: all")
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="Whisper base in CTranslate2's format")
    parser.add_argument("--moonshine", action="store_true", help="another peer, for English: pip install moonshine-voice==0.0.49")
    parser.add_argument("--tell-language", action="store_true", help="send the language with each request")
    parser.add_argument("--out", type=Path, help="write texts and times here, as JSON")
    parsed = parser.parse_args(arguments)
    wanted = parsed.sets.split(",") if parsed.sets else None
    rows = [row for row in read_rows(parsed.data / "eval.jsonl") if row.get("text") and (wanted is None or row["set"] in wanted)]
    rows = take_per_set(rows, parsed.per_set)
    peers: dict[str, Transcribe] = {}
    if parsed.peer:
        peers["faster-whisper"] = load_faster_whisper(parsed.peer)
    if parsed.moonshine:
        peers["Moonshine tiny"] = load_moonshine()
    with open_client(parsed.url) as client:
        results = measure(rows, parsed.data, client, peers, tell_language=parsed.tell_language)
    print("\n".join([*report(results), "", *report_five_seconds(results)]))
    if parsed.out:
        told = {name: {each: vars(column) for each, column in system.items()} for name, system in results.items()}
        parsed.out.write_text(json.dumps(told, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
