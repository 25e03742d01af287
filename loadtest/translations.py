"""Translation of speech into English: BLEU and chrF of a server, and time, beside a peer that takes turns with it.

    python -m loadtest.translations --url http://127.0.0.1:8000 --data DATA_DIR --peer WHISPER_CT2_DIR --out loadtest/results

The recordings are those of the sets `to_en_*` of `eval.jsonl`, each posted once, one at a time. `--peer` is faster-whisper base
in 8 bits, beam 1, which is told the language; the server is told it with `--tell-language` only. Scores are sacrebleu's, with its
defaults. Writes `translations.json` and `translations.md`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from loadtest.peers.transcribers import load_faster_whisper
from loadtest.support.asking import ask_about, open_client
from loadtest.support.markdown import table
from loadtest.support.options import add_eval_flag, add_url_flag, new_parser
from loadtest.support.recordings import read_rows, take_per_set
from loadtest.support.results import write_results
from loadtest.transcripts import language_of

INSTRUCTION = "Translate the speech into English."
PREFIX = "to_en_"


@dataclass
class Column:
    """One system's translations of one set."""

    references: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    elapsed_s: list[float] = field(default_factory=list)

    @property
    def bleu(self) -> float:
        """BLEU of the set, 0 to 100."""
        from sacrebleu import corpus_bleu

        return float(corpus_bleu(self.texts, [self.references]).score)

    @property
    def chrf(self) -> float:
        """chrF2 of the set, 0 to 100."""
        from sacrebleu import corpus_chrf

        return float(corpus_chrf(self.texts, [self.references]).score)


def measure(
    rows: Sequence[dict[str, Any]], data: Path, systems: dict[str, Callable[[Path, str], str]]
) -> dict[str, dict[str, Column]]:
    """Return by system and set what came of every recording."""
    results: dict[str, dict[str, Column]] = {name: {} for name in systems}
    for row in tqdm(rows, desc="recordings"):
        for name, translate in systems.items():
            column = results[name].setdefault(row["set"], Column())
            started_s = time.perf_counter()
            text = translate(data / row["file"], language_of(row["set"]))
            column.elapsed_s.append(time.perf_counter() - started_s)
            column.references.append(row["translation_en"])
            column.texts.append(text)
    return results


def report(results: dict[str, dict[str, Column]]) -> list[str]:
    """Return the table as lines of Markdown."""
    head = ["set", "clips"]
    for name in results:
        head += [f"{name}: BLEU", "chrF", "p50, ms"]
    rows = []
    for set_name, first in next(iter(results.values())).items():
        cells: list[Any] = [f"`{set_name}`", len(first.texts)]
        for system in results.values():
            column = system[set_name]
            cells += [f"{column.bleu:.1f}", f"{column.chrf:.1f}", round(1000 * median(column.elapsed_s))]
        rows.append(cells)
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add_url_flag(parser)
    add_eval_flag(parser)
    parser.add_argument("--per-set", type=int, default=1000, help="recordings of each set; default: all")
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="Whisper base in CTranslate2's format")
    parser.add_argument("--tell-language", action="store_true", help="send the language with each request")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parsed = parser.parse_args(arguments)
    rows = [row for row in read_rows(parsed.data / "eval.jsonl") if row["set"].startswith(PREFIX)]
    rows = take_per_set(rows, parsed.per_set)
    client = open_client(parsed.url)

    def from_server(file: Path, language: str) -> str:
        reply = ask_about(client, file, INSTRUCTION, language=language if parsed.tell_language else None)
        return str(reply["text"])

    systems: dict[str, Callable[[Path, str], str]] = {"server": from_server}
    if parsed.peer is not None:
        systems["peer"] = load_faster_whisper(parsed.peer, "translate")
    with client:
        results = measure(rows, parsed.data, systems)
    lines = report(results)
    print("\n".join(lines))
    if parsed.out is not None:
        told = {name: {each: asdict(column) for each, column in system.items()} for name, system in results.items()}
        write_results(parsed.out, "translations", told, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
