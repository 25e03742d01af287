"""A page of unchosen examples: the first recordings of a set, each with the same instructions.

    python -m loadtest.examples --url http://127.0.0.1:8000 --data DATA_DIR --out docs/examples.md

The recordings are the first `--count` of `--set` in `eval.jsonl`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loadtest.support.asking import ask_about, open_client
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.options import add_eval_flag, add_url_flag, new_parser
from loadtest.support.recordings import read_rows

INSTRUCTIONS = (
    TRANSCRIBE,
    "What is the speaker talking about?",
    "Summarise what was said in one sentence.",
)
MAX_TOKENS = "64"


def page(set_name: str, rows: Sequence[dict[str, Any]], answers: Sequence[Sequence[str]]) -> list[str]:
    """Return the page as lines of Markdown."""
    lines = [
        "# Examples",
        "",
        f"The first {len(rows)} recordings of the set `{set_name}` with the same {len(INSTRUCTIONS)} instructions, from the",
        "default bundle. Nothing was chosen or left out, and wrong answers stand as they came.",
        "`python -m loadtest.examples` writes this page.",
    ]
    for row, texts in zip(rows, answers, strict=True):
        lines += ["", f"## {Path(row['file']).stem.split('-', 1)[-1]}, {row['duration_s']:.1f} s", "", "```text"]
        lines += [f"said: {row['text']}"]
        for instruction, text in zip(INSTRUCTIONS, texts, strict=True):
            lines += ["", instruction, f"> {' '.join(text.split())}"]
        lines += ["```"]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add_url_flag(parser)
    add_eval_flag(parser)
    parser.add_argument("--set", default="libri_other")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parsed = parser.parse_args(arguments)
    rows = [row for row in read_rows(parsed.data / "eval.jsonl") if row["set"] == parsed.set][: parsed.count]
    with open_client(parsed.url) as client:
        answers = [
            [ask_about(client, parsed.data / row["file"], each, max_tokens=MAX_TOKENS)["text"] for each in INSTRUCTIONS]
            for row in tqdm(rows, desc="recordings")
        ]
    parsed.out.write_text("\n".join(page(parsed.set, rows, answers)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
