"""Keywords of a server over HTTP: how many rare words they bring into transcripts, and how many that are not spoken.

    python -m loadtest.keywords --url http://127.0.0.1:8000 --data DATA_DIR

A rare word is one of at least six letters that the texts of `train.jsonl` hold at most once. A recording with rare words is
transcribed without keywords, with its rare words among those of other recordings, and with those of other recordings alone.
Recall is the share of rare words that a transcript holds. A leak is a keyword in a transcript of audio that does not hold it.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

from loadtest.support import markdown
from loadtest.support.asking import ask_about, open_client
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.options import add_url_flag, new_parser
from loadtest.support.recordings import read_rows, take_per_set
from loadtest.support.turns import Answer, Row, take_turns
from loadtest.support.words import plain_words, word_error_rate, words_of

SHORTEST_LETTERS, MOST_SEEN = 6, 1
OTHERS = 8
"""Keywords of other recordings in each request."""
SEED = 12
SETS = ("libri_other", "nonnative", "common_voice_en", "ljspeech", "vctk")
WITHOUT, OWN, OTHERS_ALONE = "no keywords", "its own among others", "others alone"


def read_rare_words(data: Path, sets: Sequence[str], per_set: int) -> list[dict[str, Any]]:
    """Return the rows of the first recordings of each set that hold a rare word, with these words as `rare`."""
    seen = Counter(word for row in read_rows(data / "train.jsonl") for word in words_of(row.get("text") or ""))
    rows = []
    for row in read_rows(data / "eval.jsonl"):
        words = dict.fromkeys(words_of(row.get("text") or ""))
        rare = [word for word in words if word.isalpha() and len(word) >= SHORTEST_LETTERS and seen[word] <= MOST_SEEN]
        if row["set"] in sets and rare:
            rows.append(row | {"rare": rare})
    return take_per_set(rows, per_set)


def choose_keywords(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows with the keywords of each way to ask; `others` are of other recordings, and no part of any word of this one."""
    random, chosen = Random(SEED), []
    for row in rows:
        spoken = plain_words(row["text"])
        words = sorted({word for other in rows for word in other["rare"] if word not in spoken})
        others = random.sample(words, min(OTHERS, len(words)))
        mixed = random.sample([*row["rare"], *others], len(row["rare"]) + len(others))
        chosen.append({**row, "others": others, WITHOUT: [], OWN: mixed, OTHERS_ALONE: others})
    return chosen


def count_written(answers: Sequence[Answer], kind: Literal["rare", "others"]) -> int:
    """Return how many words of a kind the transcripts hold."""
    return sum(word in words_of(each.text) for each in answers for word in each.row[kind])


def report(answers: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Return the table as lines of Markdown."""
    asked = [each.row for each in answers[WITHOUT]]
    rare = sum(len(row["rare"]) for row in asked)
    head = ["keywords", f"recall of {rare} rare words", f"leaks in {len(asked)} recordings", "WER"]
    rows = [
        [
            name,
            f"{100 * count_written(group, 'rare') / max(1, rare):.0f} %",
            count_written(group, "others"),
            f"{100 * word_error_rate([each.row['text'] for each in group], [each.text for each in group]):.1f} %",
        ]
        for name, group in answers.items()
    ]
    return markdown.table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add_url_flag(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with train.jsonl, eval.jsonl and recordings")
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated")
    parser.add_argument("--per-set", type=int, default=1000, help="recordings of each set; default: all that hold a rare word")
    parsed = parser.parse_args(arguments)
    rows = choose_keywords(read_rare_words(parsed.data, parsed.sets.split(","), parsed.per_set))
    with open_client(parsed.url) as client:

        def ask(way: str, row: Row) -> Mapping[str, Any]:
            return ask_about(client, parsed.data / row["file"], TRANSCRIBE, language="en", keywords=json.dumps(row[way]))

        answers = take_turns(rows, {way: partial(ask, way) for way in (WITHOUT, OWN, OTHERS_ALONE)})
    print("\n".join(report(answers)))


if __name__ == "__main__":
    main()
