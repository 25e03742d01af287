"""Measure a draft for Whisper's decoder: its word error rate, and how few passes the decoder needs to verify it.

    python -m training.evaluate_draft --adapter work/draft/checkpoint.pt --whisper CT2_DIR --cache work/cache/whisper-0
    python -m training.evaluate_draft --adapter training/whisper_draft.safetensors --whisper CT2_DIR \\
        --eval DATA_DIR/eval.jsonl --out training/results

With `--cache`, on held-out training recordings: passes are counted from the tokens that the decoder wrote when the cache was
made. With `--eval`, on recordings: encoder, adapter and decoder run, and the decoder writes the first `--check` transcripts of
each set twice, with the draft and without, to see that the tokens are the same. Writes `whisper_draft.json` and
`whisper_draft.md`.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from models.features.log_mel import log_mel
from models.text.realignment import Draft, count_passes
from training.adapter import Adapter
from training.cache_states import load_audio
from training.cache_whisper import own_states, pad_for_whisper
from training.checkpoint import load_adapter, load_exported
from training.ctc import greedy_tokens
from training.data import StateCorpus
from training.evaluate import ENGLISH_SETS
from training.targets import TargetVocabulary, open_targets
from training.whisper_decoder import Rules, open_decoder, transcribe
from training.whisper_encoder import WhisperEncoder
from training.word_errors import word_error_rate


@dataclass(frozen=True)
class Drafted:
    """One recording: what was said, drafted and written, and in how many passes of the decoder.

    `passes_undrafted` is one per token and one for the end; `identical` whether the draft left the transcript as it was, where
    that was looked at.
    """

    set: str
    reference: str
    draft: str
    transcript: str
    tokens: int
    accepted: int
    passes: int
    passes_undrafted: int
    identical: bool | None = None


class Drafter:
    """Draft texts of an adapter, and how they are proposed in Whisper's tokens."""

    def __init__(self, adapter: Adapter, targets: TargetVocabulary, tokeniser: Tokenizer) -> None:
        self.adapter = adapter
        self.targets = targets
        self.tokeniser = tokeniser

    @torch.inference_mode()
    def text(self, states: Tensor) -> str:
        """Return the draft of an utterance from its states [states, width]; the adapter's reduction divides their number."""
        hidden, _ = self.adapter(states[None], torch.tensor([len(states) // self.adapter.config.reduction]))
        queries, blank = self.adapter.token_queries(hidden)[0], self.adapter.blank_logits(hidden)[0]
        return self.targets.decode(greedy_tokens(queries, blank, self.targets.table))

    def draft(self, text: str) -> Draft:
        return Draft(text, lambda rest: list(self.tokeniser.encode(rest, add_special_tokens=False).ids), self.tokeniser.decode)


def held_out(drafter: Drafter, caches: list[Path]) -> Iterator[Drafted]:
    """Drafts for the held-out part of some caches."""
    corpus = StateCorpus(caches, drafter.targets)
    for example in tqdm(corpus.dev, desc="held out", mininterval=10):
        text = drafter.text(corpus.batch([example]).states[0])
        tokens = list(example.decoder_tokens)
        passes, accepted = count_passes(drafter.draft(text), tokens)
        yield Drafted(
            example.dataset,
            example.reference,
            text,
            drafter.tokeniser.decode(tokens).strip(),
            len(tokens),
            accepted,
            passes,
            len(tokens) + 1,
        )


def recordings(drafter: Drafter, whisper: Path, rows: list[dict[str, Any]], data: Path, check: int) -> Iterator[Drafted]:
    """Drafts and transcripts of rows of an evaluation manifest; the first `check` of each set are written twice."""
    seen: dict[str, int] = defaultdict(int)
    encoder, decoder, rules = WhisperEncoder(whisper / "model.bin"), open_decoder(whisper), Rules.of_folder(whisper)
    for row in tqdm(rows, desc="recordings", mininterval=10):
        audio = load_audio(data / row["file"])
        states = encoder(torch.from_numpy(log_mel(pad_for_whisper(audio))))
        text = drafter.text(states[: own_states(len(audio))])
        verified = transcribe(decoder, rules, states, drafter.draft(text))
        seen[row["set"]] += 1
        checked = seen[row["set"]] <= check
        yield Drafted(
            row["set"],
            row["text"],
            text,
            drafter.tokeniser.decode(verified.tokens).strip(),
            len(verified.tokens),
            verified.accepted,
            verified.passes,
            len(verified.tokens) + 1,
            transcribe(decoder, rules, states).tokens == verified.tokens if checked else None,
        )


def read_rows(manifest: Path, sets: list[str], limit: int | None) -> list[dict[str, Any]]:
    """Rows of an evaluation manifest: of each of these sets the first `limit`, or all."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [row for name in sets for row in [row for row in rows if row["set"] == name][:limit]]


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
        checked = [each.identical for each in group if each.identical is not None]
        if checked:
            figures["checked"] = len(checked)
            figures["identical"] = sum(checked) / len(checked)
        summary[name] = {key: round(value, 4) for key, value in figures.items()}
    return summary


def table(summary: dict[str, dict[str, float]]) -> str:
    """Return the summary in Markdown."""
    heads = (
        "set", "recordings", "draft WER", "transcript WER", "draft against transcript", "passes", "without a draft",
        "tokens accepted per pass", "tokens from the draft", "transcripts identical",
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
            f"{checked * row['identical']:.0f} of {checked:.0f}" if (checked := row.get("checked", 0)) else "not checked",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="a checkpoint of train_ctc, or exported safetensors")
    parser.add_argument("--whisper", type=Path, required=True, help="Whisper in CTranslate2's format, with tokenizer.json")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cache", type=Path, nargs="+", help="caches whose held-out part is measured")
    where.add_argument("--eval", type=Path, help="manifest of recordings")
    parser.add_argument("--sets", nargs="+", default=list(ENGLISH_SETS), help="sets of the manifest; default: %(default)s")
    parser.add_argument("--limit", type=int, help="so many recordings of each set; default: all")
    parser.add_argument("--check", type=int, default=10, help="so many transcripts of each set are written without a draft too")
    parser.add_argument("--out", type=Path, help="folder for whisper_draft.json and whisper_draft.md")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    is_exported = arguments.adapter.suffix == ".safetensors"
    adapter = load_exported(arguments.adapter, Adapter) if is_exported else load_adapter(arguments.adapter)
    targets = open_targets(adapter.config.targets, arguments.whisper)
    drafter = Drafter(adapter, targets, Tokenizer.from_file(str(arguments.whisper / "tokenizer.json")))
    if arguments.cache:
        found = held_out(drafter, arguments.cache)
    else:
        rows = read_rows(arguments.eval, arguments.sets, arguments.limit)
        found = recordings(drafter, arguments.whisper, rows, arguments.eval.parent, arguments.check)
    results = list(found)
    summary = summarise(results)
    print(table(summary))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = "whisper_draft_held_out" if arguments.cache else "whisper_draft"
        content: dict[str, Any] = {
            "adapter": arguments.adapter.name,
            "targets": targets.name,
            "date": time.strftime("%Y-%m-%d"),
            "sets": summary,
            "recordings": [asdict(each) for each in results],
        }
        (arguments.out / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        (arguments.out / f"{name}.md").write_text(table(summary) + "\n")


if __name__ == "__main__":
    main()
