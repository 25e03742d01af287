"""Measure a draft for Whisper's decoder: its word error rate, and how few passes the decoder needs to verify it.

    python -m training.evaluate_draft --adapter work/draft/checkpoint.pt --whisper CT2_DIR --cache work/cache/whisper

On held-out training recordings: passes are counted from the tokens that the decoder wrote when the cache was made.
`loadtest.transcripts` has those of a server. Writes `whisper_draft_held_out.json` and `whisper_draft_held_out.md`.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Prefix
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from models.ctc import collapse
from models.protocols import CtcDraft
from models.runtimes.onnx.projector import projector_output
from models.text.prefix_draft import PrefixDraft
from training.adapter import Adapter
from training.bridge import score_frames
from training.checkpoint import load_adapter, load_exported
from training.data import StateCorpus
from training.greedy_writer import Propose
from training.targets import TargetVocabulary, open_targets
from training.word_errors import word_error_rate

BLANK_THRESHOLD = 0.5
"""P(blank) below which an exported adapter scores a frame's tokens, if nothing else is said to `training.export_adapter`."""


@dataclass(frozen=True)
class Drafted:
    """One recording: what was said, drafted and written, and in how many passes of the decoder.

    `passes_undrafted` is one per token and one for the end.
    """

    set: str
    reference: str
    draft: str
    transcript: str
    tokens: int
    accepted: int
    passes: int
    passes_undrafted: int


class Drafter:
    """The drafts of an adapter, as serving has them."""

    def __init__(self, adapter: Adapter, targets: TargetVocabulary) -> None:
        """Raises `ValueError` for an adapter whose draft is not in Whisper's tokens, one a frame."""
        if adapter.config.targets != "whisper" or adapter.config.outputs_per_frame != 1:
            raise ValueError("the adapter's draft is not in Whisper's tokens, so that Whisper cannot verify it")
        self.adapter = adapter
        self.targets = targets

    @torch.inference_mode()
    def draft(self, states: Tensor) -> CtcDraft:
        """Return the draft of an utterance from its states [states, width]; the adapter's reduction divides their number."""
        hidden, _ = self.adapter(states[None], torch.tensor([len(states) // self.adapter.config.reduction]))
        queries, blank = self.adapter.token_queries(hidden)[0], self.adapter.blank_logits(hidden)[0].sigmoid()
        kept, tokens, probabilities = score_frames(queries, blank, self.targets.table, BLANK_THRESHOLD)
        none = np.zeros((len(kept), 0), np.float32)
        output = projector_output(blank.numpy(), kept.numpy(), tokens.numpy(), probabilities.numpy(), none)
        return output.require_draft()

    def text(self, draft: CtcDraft) -> str:
        return self.targets.decode(list(collapse(draft.best_token)))


def count_passes(propose: Propose, tokens: Sequence[int]) -> tuple[int, int]:
    """Return the passes that a decoder which writes `tokens` and then its end would need, and how many proposed tokens stood.

    Because verification never changes what is written, this needs no decoder.
    """
    written, passes, accepted = 0, 0, 0
    while True:
        proposal = propose(tokens[:written])
        passes += 1
        stood = Prefix.similarity(tokens[written:], proposal)
        accepted += stood
        written += stood + 1
        if written > len(tokens):
            return passes, accepted


def held_out(drafter: Drafter, tokeniser: Tokenizer, caches: list[Path]) -> Iterator[Drafted]:
    """Drafts for the held-out part of some caches."""
    corpus = StateCorpus(caches, drafter.targets)
    for example in tqdm(corpus.dev, desc="held out", mininterval=10):
        draft = drafter.draft(corpus.batch([example]).states[0])
        tokens = list(example.entry.tokens)
        passes, accepted = count_passes(PrefixDraft(draft).propose, tokens)
        yield Drafted(
            example.dataset,
            example.entry.reference,
            drafter.text(draft),
            tokeniser.decode(tokens).strip(),
            len(tokens),
            accepted,
            passes,
            len(tokens) + 1,
        )


def summarise(results: Iterable[Drafted]) -> dict[str, dict[str, float]]:
    """Figures per set: error rates are over words, passes the mean per transcript, shares over tokens and over transcripts."""
    by_set = defaultdict(list)
    for result in results:
        by_set[result.set].append(result)
    summary = {}
    for name, group in sorted(by_set.items()):
        said = [each for each in group if each.reference]
        written = [each for each in group if each.transcript]
        figures: dict[str, float] = {"recordings": len(group)}
        if said:
            references = [each.reference for each in said]
            figures["draft_wer"] = word_error_rate(references, [each.draft for each in said])
            figures["transcript_wer"] = word_error_rate(references, [each.transcript for each in said])
        figures["draft_wer_to_transcript"] = word_error_rate(
            [each.transcript for each in written], [each.draft for each in written]
        )
        figures["passes"] = sum(each.passes for each in group) / len(group)
        figures["passes_undrafted"] = sum(each.passes_undrafted for each in group) / len(group)
        figures["accepted_per_pass"] = sum(each.accepted for each in group) / sum(each.passes for each in group)
        figures["tokens_accepted"] = sum(each.accepted for each in group) / max(1, sum(each.tokens for each in group))
        summary[name] = {key: round(value, 4) for key, value in figures.items()}
    return summary


def table(summary: dict[str, dict[str, float]]) -> str:
    """Return the summary in Markdown."""
    heads = (
        "set", "recordings", "draft WER", "transcript WER", "draft against transcript", "passes", "without a draft",
        "tokens accepted per pass", "tokens from the draft",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, row in summary.items():
        percent = {key: f"{100 * value:.1f} %" for key, value in row.items()}
        cells = [
            name,
            f"{row['recordings']:.0f}",
            percent.get("draft_wer", "no text"),
            percent.get("transcript_wer", "no text"),
            percent["draft_wer_to_transcript"],
            f"{row['passes']:.1f}",
            f"{row['passes_undrafted']:.1f}",
            f"{row['accepted_per_pass']:.1f}",
            percent["tokens_accepted"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="a checkpoint of train_ctc, or exported safetensors")
    parser.add_argument("--whisper", type=Path, required=True, help="Whisper in CTranslate2's format, with tokenizer.json")
    parser.add_argument("--cache", type=Path, nargs="+", required=True, help="caches whose held-out part is measured")
    parser.add_argument("--out", type=Path, help="folder for whisper_draft_held_out.json and whisper_draft_held_out.md")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    is_exported = arguments.adapter.suffix == ".safetensors"
    adapter = load_exported(arguments.adapter, Adapter) if is_exported else load_adapter(arguments.adapter)
    targets = open_targets(adapter.config.targets, arguments.whisper)
    tokeniser = Tokenizer.from_file(str(arguments.whisper / "tokenizer.json"))
    results = list(held_out(Drafter(adapter, targets), tokeniser, arguments.cache))
    summary = summarise(results)
    print(table(summary))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {
            "adapter": arguments.adapter.name,
            "targets": targets.name,
            "date": time.strftime("%Y-%m-%d"),
            "sets": summary,
            "recordings": [asdict(each) for each in results],
        }
        (arguments.out / "whisper_draft_held_out.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        (arguments.out / "whisper_draft_held_out.md").write_text(table(summary) + "\n")


if __name__ == "__main__":
    main()
