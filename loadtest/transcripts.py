"""Word error rates of a server over HTTP, and time to a transcript, beside peers that take turns with it.

    python -m loadtest.transcripts --url http://127.0.0.1:8000 --data DATA_DIR --peer WHISPER_CT2_DIR --moonshine

Each recording of the manifest is posted once, one at a time. English is compared after Whisper's normaliser, other languages
without case and punctuation. `--peer` is faster-whisper base in 8 bits, beam 1, with the language given, and again with
`--peer-finds-language` without. `--moonshine` is Moonshine tiny in ONNX Runtime, for English.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx
from whisper_normalizer.english import EnglishTextNormalizer

from loadtest.peers.transcribers import Transcribe, load_faster_whisper, load_moonshine
from loadtest.support import markdown
from loadtest.support.asking import ask_about, open_client
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.options import add_eval_flag, add_url_flag, new_parser
from loadtest.support.recordings import read_rows, take_per_set
from loadtest.support.turns import Answer, Row, System, group_by_set, list_for_json, take_turns
from loadtest.support.words import MakeWords, plain_words, word_error_rate, words_of

SERVER = "server"
FIVE_S = (4.0, 6.0)
"""Recordings of about 5 s, whose time has a line of its own."""


def language_of(name: str) -> str:
    """Return the language of a set by its name: `common_voice_de` and `to_en_es` end with it, the others are English."""
    found = re.fullmatch(r"(?:common_voice|to_en)_([a-z]{2})", name)
    return found.group(1) if found else "en"


def ask_server(client: httpx.Client, data: Path, instruction: str, *, tells_language: bool) -> System:
    """Return the server as one that is asked the same about each recording, with its language or without."""

    def ask(row: Row) -> Mapping[str, Any]:
        return ask_about(client, data / row["file"], instruction, language=language_of(row["set"]) if tells_language else None)

    return ask


def ask_peer(transcribe: Transcribe, data: Path, only: str | None = None) -> System:
    """Return a peer that is given each recording's language, of which it may know `only` one."""

    def ask(row: Row) -> Mapping[str, Any] | None:
        language = language_of(row["set"])
        return {"text": transcribe(data / row["file"], language)} if only in (None, language) else None

    return ask


def ask_peer_without_language(transcribe: Transcribe, data: Path) -> System:
    """Return a peer that has to find each recording's language."""
    return lambda row: {"text": transcribe(data / row["file"], None)}


def count_runaways(answers: Sequence[Answer]) -> int:
    """Return how many transcripts have more than twice as many words as the reference."""
    return sum(len(words_of(each.text)) > 2 * len(words_of(each.row["text"])) for each in answers)


def report(answers: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Return the table as lines of Markdown."""
    english: MakeWords = EnglishTextNormalizer()
    head, groups = ["set", "clips"], {name: group_by_set(of_system) for name, of_system in answers.items()}
    for name in groups:
        head += [f"{name}: WER", "runaways", "p50, ms"]
    rows = []
    for set_name, from_server in groups[SERVER].items():
        cells: list[Any] = [f"`{set_name}`", len(from_server)]
        normalise = english if language_of(set_name) == "en" else plain_words
        for of_system in groups.values():
            if (group := of_system.get(set_name)) is None:
                cells += ["", "", ""]
                continue
            error_rate = word_error_rate([each.row["text"] for each in group], [each.text for each in group], normalise)
            p50_ms = round(1000 * median(each.elapsed_s for each in group))
            cells += [f"{100 * error_rate:.1f} %", count_runaways(group), p50_ms]
        passes = mean(each.reply["speculation"]["llm_passes"] for each in from_server)
        rows.append([*cells, f"{passes:.1f}"])
    return markdown.table([*head, "passes"], rows)


def report_five_seconds(answers: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Return a line for each system about English recordings of about 5 s."""
    lines = []
    for name, of_system in answers.items():
        times_s = [
            each.elapsed_s
            for each in of_system
            if language_of(each.row["set"]) == "en" and FIVE_S[0] <= each.row["duration_s"] <= FIVE_S[1]
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
    parser.add_argument("--peer-finds-language", action="store_true", help="ask that peer without a language too")
    parser.add_argument("--moonshine", action="store_true", help="another peer, for English: pip install moonshine-voice==0.0.49")
    parser.add_argument("--tell-language", action="store_true", help="send the language with each request")
    parser.add_argument("--out", type=Path, help="write texts and times here, as JSON")
    parsed = parser.parse_args(arguments)
    wanted = parsed.sets.split(",") if parsed.sets else None
    rows = [row for row in read_rows(parsed.data / "eval.jsonl") if row.get("text") and (wanted is None or row["set"] in wanted)]
    rows = take_per_set(rows, parsed.per_set)
    with open_client(parsed.url) as client:
        systems = {SERVER: ask_server(client, parsed.data, TRANSCRIBE, tells_language=parsed.tell_language)}
        if parsed.peer:
            whisper = load_faster_whisper(parsed.peer)
            systems["faster-whisper"] = ask_peer(whisper, parsed.data)
            if parsed.peer_finds_language:
                systems["faster-whisper, language not given"] = ask_peer_without_language(whisper, parsed.data)
        if parsed.moonshine:
            systems["Moonshine tiny"] = ask_peer(load_moonshine(), parsed.data, only="en")
        answers = take_turns(rows, systems)
    print("\n".join([*report(answers), "", *report_five_seconds(answers)]))
    if parsed.out:
        parsed.out.write_text(json.dumps(list_for_json(answers), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
