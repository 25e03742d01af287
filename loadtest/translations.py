"""Translation of speech into English: BLEU and chrF of a server, and time, beside a peer that takes turns with it.

    python -m loadtest.translations --url http://127.0.0.1:8000 --data DATA_DIR --peer WHISPER_CT2_DIR --out loadtest/results

The recordings are those of the sets `to_en_*` of `eval.jsonl`, each posted once, one at a time. `--peer` is faster-whisper base
in 8 bits, beam 1, which is told the language; the server is told it with `--tell-language` only. Scores are sacrebleu's, with its
defaults. Writes `translations.json` and `translations.md`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.peers.transcribers import load_faster_whisper
from loadtest.support.asking import open_client
from loadtest.support.markdown import table
from loadtest.support.options import add_eval_flag, add_url_flag, new_parser
from loadtest.support.recordings import read_rows, take_per_set
from loadtest.support.results import write_results
from loadtest.support.turns import Answer, group_by_set, list_for_json, take_turns
from loadtest.transcripts import ask_peer, ask_server

INSTRUCTION = "Translate the speech into English."
PREFIX = "to_en_"


def score(answers: Sequence[Answer]) -> tuple[float, float]:
    """Return BLEU and chrF2 of translations, 0 to 100."""
    from sacrebleu import corpus_bleu, corpus_chrf

    texts, references = [each.text for each in answers], [[each.row["translation_en"] for each in answers]]
    return float(corpus_bleu(texts, references).score), float(corpus_chrf(texts, references).score)


def report(answers: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Return the table as lines of Markdown."""
    head, groups = ["set", "clips"], {name: group_by_set(of_system) for name, of_system in answers.items()}
    for name in groups:
        head += [f"{name}: BLEU", "chrF", "p50, ms"]
    rows = []
    for set_name, first in next(iter(groups.values())).items():
        cells: list[Any] = [f"`{set_name}`", len(first)]
        for of_system in groups.values():
            bleu, chrf = score(of_system[set_name])
            cells += [f"{bleu:.1f}", f"{chrf:.1f}", round(1000 * median(each.elapsed_s for each in of_system[set_name]))]
        rows.append(cells)
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add_url_flag(parser)
    add_eval_flag(parser)
    parser.add_argument("--per-set", type=int, default=1000, help="recordings of each set; default: all")
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="Whisper base in CTranslate2's format")
    parser.add_argument("--tell-language", action="store_true", help="send the language with each request")
    parser.add_argument(
        "--instruction",
        default=INSTRUCTION,
        help="default: %(default)s; the LLM answers one that the speech decoder does not know",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parsed = parser.parse_args(arguments)
    rows = [row for row in read_rows(parsed.data / "eval.jsonl") if row["set"].startswith(PREFIX)]
    rows = take_per_set(rows, parsed.per_set)
    with open_client(parsed.url) as client:
        systems = {"server": ask_server(client, parsed.data, parsed.instruction, tells_language=parsed.tell_language)}
        if parsed.peer is not None:
            systems["peer"] = ask_peer(load_faster_whisper(parsed.peer, "translate"), parsed.data)
        answers = take_turns(rows, systems)
    lines = report(answers)
    print("\n".join(lines))
    if parsed.out is not None:
        write_results(parsed.out, "translations", list_for_json(answers), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
