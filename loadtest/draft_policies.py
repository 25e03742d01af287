"""Measure the effect of the draft policies on word error rate, latency and the number of LLM passes, through a running server.

    python -m loadtest.draft_policies --url http://127.0.0.1:8000 --eval DATA/eval.jsonl --out loadtest/results

Every recording is transcribed without a draft, with exact drafts and with relaxed ones, one request at a time, the policies in
turn on each recording so that the machine's moods hit all alike. Exact drafts must give the very text that no draft gives:
where they do not, the recording is named and the exit status is 1. Writes `draft_policies.json` and `draft_policies.md`.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from whisper_normalizer.english import EnglishTextNormalizer

from loadtest.support.asking import ask_about, open_client
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.markdown import table
from loadtest.support.options import add_url_flag, new_parser
from loadtest.support.recordings import read_rows
from loadtest.support.results import write_results
from loadtest.support.turns import Answer, Row, group_by_set, take_turns
from loadtest.support.words import word_error_rate

POLICIES = ("off", "exact", "relaxed")


def summarise(answers: Mapping[str, Sequence[Answer]]) -> dict[str, dict[str, Any]]:
    """Return by policy: word error rate by set, median latency, and how the tokens came about."""
    normalise = EnglishTextNormalizer()
    summary = {}
    for policy, of_policy in answers.items():
        replies = [each.reply for each in of_policy]
        times_ms = [reply["times_ms"] for reply in replies]
        drafted = sum(reply["speculation"]["drafted"] for reply in replies)
        passes = sum(reply["speculation"]["llm_passes"] for reply in replies)
        summary[policy] = {
            "word_error_rate": {
                name: word_error_rate([each.row["text"] for each in group], [each.text for each in group], normalise)
                for name, group in group_by_set(of_policy).items()
            },
            "latency_p50_ms": statistics.median(each["total_ms"] for each in times_ms),
            "llm_p50_ms": statistics.median(
                reply["times_ms"]["prefill_ms"] + reply["times_ms"]["decode_ms"] for reply in replies
            ),
            "tokens_per_llm_pass": sum(reply["usage"]["output_tokens"] for reply in replies) / passes,
            "acceptance": sum(reply["speculation"]["accepted"] for reply in replies) / drafted if drafted else None,
        }
    return summary


def markdown(summary: dict[str, dict[str, Any]]) -> str:
    """Return the summary as a table."""
    sets = list(next(iter(summary.values()))["word_error_rate"])
    rows = []
    for policy, row in summary.items():
        rates = [f"{100 * row['word_error_rate'][name]:.1f} %" for name in sets]
        accepted = "" if row["acceptance"] is None else f"{100 * row['acceptance']:.0f} %"
        times = [f"{row[name]:.0f}" for name in ("latency_p50_ms", "llm_p50_ms")]
        rows.append([policy, *rates, *times, f"{row['tokens_per_llm_pass']:.2f}", accepted])
    return "\n".join(table(["draft", *sets, "p50 ms", "LLM p50 ms", "tokens per pass", "accepted"], rows)) + "\n"


def main() -> int:
    parser = new_parser(__doc__)
    add_url_flag(parser)
    parser.add_argument("--eval", type=Path, required=True, help="JSON lines with file, text, set and language")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows, folder = read_rows(arguments.eval, "en"), arguments.eval.parent
    with open_client(arguments.url) as client:

        def ask(policy: str, row: Row) -> Mapping[str, Any]:
            return ask_about(client, folder / row["file"], TRANSCRIBE, draft=policy)

        answers = take_turns(rows, {policy: partial(ask, policy) for policy in POLICIES})
    texts = {policy: [each.text for each in of_policy] for policy, of_policy in answers.items()}
    changed = [row["file"] for row, off, exact in zip(rows, texts["off"], texts["exact"], strict=True) if off != exact]
    summary = summarise(answers)
    result = {"recordings": len(rows), "changed_by_exact_drafts": changed, "policies": summary, "texts": texts}
    write_results(arguments.out, "draft_policies", result, markdown(summary))
    print(markdown(summary))
    print(f"exact drafts changed {len(changed)} of {len(rows)} texts {' '.join(changed)}")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
