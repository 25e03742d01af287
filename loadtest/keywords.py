"""Keywords of a server over HTTP: how many rare words they bring into transcripts, and how many that are not spoken.

    python -m loadtest.keywords --url http://127.0.0.1:8000 --data DATA_DIR

A rare word is one of at least six letters that the texts of `train.jsonl` hold at most once. A recording with rare words is
transcribed without keywords, with its rare words among those of other recordings, and with those of other recordings alone.
Recall is the share of rare words that a transcript holds. A leak is a keyword in a transcript of audio that does not hold it.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
from tqdm import tqdm

from loadtest.support import markdown
from loadtest.support.asking import ask_about, open_client
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.options import add_url_flag, new_parser
from loadtest.support.recordings import read_rows
from loadtest.support.words import plain_words, word_error_rate

SHORTEST_LETTERS, MOST_SEEN = 6, 1
OTHERS = 8
"""Keywords of other recordings in each request."""
SEED = 12
SETS = ("libri_other", "nonnative", "common_voice_en", "ljspeech", "vctk")
WITHOUT, OWN, OTHERS_ALONE = "no keywords", "its own among others", "others alone"


@dataclass(frozen=True)
class Clip:
    file: Path
    text: str
    rare: tuple[str, ...]


@dataclass
class Column:
    """Counts of one way to ask: rare words that were written, and words of others that were; and the texts."""

    found: int = 0
    leaks: int = 0
    references: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def read_clips(data: Path, sets: Sequence[str], per_set: int) -> list[Clip]:
    """Return the first recordings of each set that hold a rare word."""
    seen = Counter(word for row in read_rows(data / "train.jsonl") for word in plain_words(row.get("text") or "").split())
    counts: Counter[str] = Counter()
    clips = []
    for row in read_rows(data / "eval.jsonl"):
        name, text = row["set"], row.get("text") or ""
        words = dict.fromkeys(plain_words(text).split())
        rare = tuple(word for word in words if word.isalpha() and len(word) >= SHORTEST_LETTERS and seen[word] <= MOST_SEEN)
        if name in sets and rare and counts[name] < per_set:
            counts[name] += 1
            clips.append(Clip(data / row["file"], text, rare))
    return clips


def choose_others(clips: Sequence[Clip], clip: Clip, random: Random) -> list[str]:
    """Return keywords of other recordings that are no part of any word of this one."""
    spoken = plain_words(clip.text)
    words = sorted({word for other in clips for word in other.rare if word not in spoken})
    return random.sample(words, min(OTHERS, len(words)))


def measure(clips: Sequence[Clip], client: httpx.Client) -> dict[str, Column]:
    """Return the counts by the way to ask."""
    random = Random(SEED)
    columns = {name: Column() for name in (WITHOUT, OWN, OTHERS_ALONE)}
    for clip in tqdm(clips, desc="recordings"):
        others = choose_others(clips, clip, random)
        mixed = random.sample([*clip.rare, *others], len(clip.rare) + len(others))
        for name, keywords in ((WITHOUT, []), (OWN, mixed), (OTHERS_ALONE, others)):
            text = ask_about(client, clip.file, TRANSCRIBE, language="en", keywords=json.dumps(keywords))["text"]
            words = plain_words(text).split()
            column = columns[name]
            column.found += sum(word in words for word in clip.rare)
            column.leaks += sum(word in words for word in others)
            column.references.append(clip.text)
            column.texts.append(text)
    return columns


def report(clips: Sequence[Clip], columns: dict[str, Column]) -> list[str]:
    """Return the table as lines of Markdown."""
    rare = sum(len(clip.rare) for clip in clips)
    head = ["keywords", f"recall of {rare} rare words", f"leaks in {len(clips)} recordings", "WER"]
    rows = [
        [
            name,
            f"{100 * column.found / max(1, rare):.0f} %",
            column.leaks,
            f"{100 * word_error_rate(column.references, column.texts):.1f} %",
        ]
        for name, column in columns.items()
    ]
    return markdown.table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add_url_flag(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with train.jsonl, eval.jsonl and recordings")
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated")
    parser.add_argument("--per-set", type=int, default=1000, help="recordings of each set; default: all that hold a rare word")
    parsed = parser.parse_args(arguments)
    clips = read_clips(parsed.data, parsed.sets.split(","), parsed.per_set)
    with open_client(parsed.url) as client:
        columns = measure(clips, client)
    print("\n".join(report(clips, columns)))


if __name__ == "__main__":
    main()
