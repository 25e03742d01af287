"""Do two servers give the same texts? `python -m loadtest.same_texts --left URL --right URL --data DATA`

Every recording is posted to both, one at a time, and to the right one again among others at the same time. It was written to hold
a GPU's runtimes against the CPU's: serve one bundle by both.
"""

import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from loadtest.support.asking import ask_about, open_client
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.options import new_parser
from loadtest.support.recordings import read_rows

INSTRUCTIONS = (TRANSCRIBE, "What is the speaker talking about?")
LONGEST_S = 15.0


@dataclass(frozen=True)
class Question:
    file: Path
    instruction: str


def choose(data: Path, count: int, seed: int) -> list[Path]:
    """Return `count` of the evaluation's recordings, drawn at random."""
    files = [data / row["file"] for row in read_rows(data / "eval.jsonl") if row["duration_s"] < LONGEST_S]
    return random.Random(seed).sample(files, min(count, len(files)))


def ask_all(url: str, questions: Sequence[Question], clients: int, name: str) -> list[str]:
    """Return the texts in order, asked for so many at a time. Raises `httpx.HTTPError`."""
    with open_client(url) as client, ThreadPoolExecutor(clients) as pool:
        answers = pool.map(lambda each: ask_about(client, each.file, each.instruction, max_tokens="48")["text"], questions)
        return list(tqdm(answers, name, len(questions)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--left", required=True, metavar="URL")
    parser.add_argument("--right", required=True, metavar="URL")
    parser.add_argument("--data", required=True, type=Path, metavar="FOLDER", help="with eval.jsonl and its recordings")
    parser.add_argument("--count", type=int, default=60, help="recordings; default: %(default)s")
    parser.add_argument("--clients", type=int, default=8, help="at the same time, in the second round; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    questions = [Question(file, text) for file in choose(options.data, options.count, options.seed) for text in INSTRUCTIONS]
    expected = ask_all(options.left, questions, 1, "left, alone")
    rounds = {
        "alone": ask_all(options.right, questions, 1, "right, alone"),
        f"among {options.clients}": ask_all(options.right, questions, options.clients, "right, in a crowd"),
    }
    for name, texts in rounds.items():
        for instruction in INSTRUCTIONS:
            pairs = [
                pair
                for pair, each in zip(zip(expected, texts, strict=True), questions, strict=True)
                if each.instruction == instruction
            ]
            same = sum(left == right for left, right in pairs)
            print(f"{name}: {same} of {len(pairs)} texts are the same under {instruction!r}")
    for question, left, right in zip(questions, expected, rounds["alone"], strict=True):
        if left != right:
            print(f"{question.file.name}, {question.instruction!r}\n  {left}\n  {right}")
    return 0 if all(texts == expected for texts in rounds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
