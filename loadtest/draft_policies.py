"""Measure the effect of the draft policies on word error rate, latency and the number of LLM passes, through a running server.

    python -m loadtest.draft_policies --url http://127.0.0.1:8000 --eval DATA/eval.jsonl --out loadtest/results

Every recording is transcribed without a draft, with exact drafts and with relaxed ones, one request at a time, the policies in
turn on each recording so that the machine's moods hit all alike. Exact drafts must give the very text that no draft gives:
where they do not, the recording is named and the exit status is 1. Writes `draft_policies.json` and `draft_policies.md`.
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from whisper_normalizer.english import EnglishTextNormalizer

from loadtest.support.asking import ask_about, open_client
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.markdown import table
from loadtest.support.options import add_url_flag, new_parser
from loadtest.support.recordings import read_rows
from loadtest.support.results import write_results
from loadtest.support.words import word_error_rate

POLICIES = ("off", "exact", "relaxed")


@dataclass(frozen=True)
class Recording:
    """One line of the manifest: a file beside it, its text, and the set that it belongs to."""

    path: Path
    text: str
    set: str


def read_recordings(manifest: Path) -> list[Recording]:
    """Read the English recordings of a manifest."""
    return [Recording(manifest.parent / row["file"], row["text"], row["set"]) for row in read_rows(manifest, "en")]


def summarise(recordings: list[Recording], replies: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Per policy: word error rate by set, median latency, and how the tokens came about."""
    normalise = EnglishTextNormalizer()
    summary = {}
    for policy, answers in replies.items():
        rates = {}
        for name in dict.fromkeys(recording.set for recording in recordings):
            chosen = [index for index, recording in enumerate(recordings) if recording.set == name]
            texts = [answers[index]["text"] for index in chosen]
            rates[name] = word_error_rate([recordings[index].text for index in chosen], texts, normalise)
        drafted = sum(answer["speculation"]["drafted"] for answer in answers)
        passes = sum(answer["speculation"]["llm_passes"] for answer in answers)
        summary[policy] = {
            "word_error_rate": rates,
            "latency_p50_ms": statistics.median(answer["times_ms"]["total_ms"] for answer in answers),
            "llm_p50_ms": statistics.median(
                answer["times_ms"]["prefill_ms"] + answer["times_ms"]["decode_ms"] for answer in answers
            ),
            "tokens_per_llm_pass": sum(answer["usage"]["output_tokens"] for answer in answers) / passes,
            "acceptance": sum(answer["speculation"]["accepted"] for answer in answers) / drafted if drafted else None,
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
    recordings = read_recordings(arguments.eval)
    replies: dict[str, list[dict[str, Any]]] = {policy: [] for policy in POLICIES}
    with open_client(arguments.url) as client:
        for recording in tqdm(recordings, unit="clip"):
            for policy in POLICIES:
                replies[policy].append(ask_about(client, recording.path, TRANSCRIBE, draft=policy))
    texts = {policy: [answer["text"] for answer in answers] for policy, answers in replies.items()}
    changed = [r.path.name for r, off, exact in zip(recordings, texts["off"], texts["exact"], strict=True) if off != exact]
    summary = summarise(recordings, replies)
    result = {"recordings": len(recordings), "changed_by_exact_drafts": changed, "policies": summary, "texts": texts}
    write_results(arguments.out, "draft_policies", result, markdown(summary))
    print(markdown(summary))
    print(f"exact drafts changed {len(changed)} of {len(recordings)} texts {' '.join(changed)}")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
