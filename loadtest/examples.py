"""A page of unchosen examples: the first recordings of a set, each with the same instructions.

    python -m loadtest.examples --url http://127.0.0.1:8000 --data DATA_DIR --out docs/examples.md

The recordings are the first `--count` of `--set` in `eval.jsonl`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from loadtest.support.asking import open_client
from loadtest.support.recordings import read_rows

INSTRUCTIONS = (
    "Transcribe the speech to text.",
    "What is the speaker talking about?",
    "Summarise what was said in one sentence.",
)
MAX_TOKENS = "64"


def ask(client: httpx.Client, instruction: str, audio: bytes) -> str:
    """Return the answer. Raises `httpx.HTTPError`."""
    reply = client.post("/v1/instruct", files={"audio": audio}, data={"instruction": instruction, "max_tokens": MAX_TOKENS})
    reply.raise_for_status()
    return str(reply.json()["text"])


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with eval.jsonl and its recordings")
    parser.add_argument("--set", default="libri_other")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parsed = parser.parse_args(arguments)
    rows = [row for row in read_rows(parsed.data / "eval.jsonl") if row["set"] == parsed.set][: parsed.count]
    with open_client(parsed.url) as client:
        answers = [
            [ask(client, instruction, (parsed.data / row["file"]).read_bytes()) for instruction in INSTRUCTIONS]
            for row in tqdm(rows, desc="recordings")
        ]
    parsed.out.write_text("\n".join(page(parsed.set, rows, answers)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
