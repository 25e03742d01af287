"""Stage 1: train the adapter by CTC over the LLM's tokens, Whisper's tokens or characters, with neither model in the loop.

    python -m training.train_ctc --cache work/cache/real work/cache/synthesis --weights FILE.gguf --out work/ctc --steps 3000
    python -m training.train_ctc --cache work/cache/whisper-0 --targets characters --out work/draft --steps 1500

    python -m training.train_ctc --cache work/cache/whisper --targets whisper llm --weights CT2_DIR FILE.gguf --out work/both

With several targets the adapters share their layers, and each has a head of its own: both are trained in little more time than
one. Resumes from `OUT/checkpoint.pt`, of further targets `OUT/checkpoint-NAME.pt`; a resumed run reads the caches anew, so they
may have grown meanwhile.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from training.adapter import Adapter, AdapterConfig
from training.checkpoint import resume, save_checkpoint
from training.ctc import ctc_loss, greedy_tokens, sample_vocabulary
from training.data import REDUCTION, Batch, Example, StateCorpus, pad_targets
from training.targets import TARGETS, TargetVocabulary, open_targets
from training.word_errors import word_error_rate

# How often an utterance of a dataset is seen per epoch; real read speech is scarce and worth most.
DATASET_WEIGHTS = {
    "libri_clean": 2.0,
    "libri_clean_unlabelled": 3.0,
    "coffee_orders_unlabelled": 1.0,
    "nonnative": 1.0,
    "synthesis_espeak": 0.7,
}


def learning_rate(step: int, total: int, peak: float, warm_up: int = 150) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, (step - warm_up) / (total - warm_up)))))


def stretch(states: Tensor, frames: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The whole batch slower or faster by up to 15 %, by interpolation between states; frames follow."""
    longest = states.shape[1] // REDUCTION
    wanted = max(1, round(longest * (0.85 + 0.3 * float(torch.rand((), generator=generator)))))
    stretched = functional.interpolate(states.transpose(1, 2), size=wanted * REDUCTION, mode="linear").transpose(1, 2)
    return stretched, (frames * wanted).div(longest, rounding_mode="floor").clamp(min=1)


def mask(states: Tensor, frames: Tensor, generator: torch.Generator) -> Tensor:
    """SpecAugment on encoder states: per utterance three spans of up to 0.6 s and a tenth of the channels are zeroed."""
    batch, _, width = states.shape
    keep_channels = torch.rand(batch, 1, width, generator=generator) > 0.2 * torch.rand(batch, 1, 1, generator=generator)
    states = states * keep_channels
    for row, length in enumerate((frames * REDUCTION).tolist()):
        for _ in range(3):
            span = int(torch.randint(0, min(30, length // 6) + 1, (), generator=generator))
            start = int(torch.randint(0, length - span + 1, (), generator=generator))
            states[row, start : start + span] = 0
    return states


@torch.no_grad()
def draft_error_rates(adapter: Adapter, corpus: StateCorpus, targets: TargetVocabulary, per_dataset: int) -> dict[str, float]:
    """WER of the CTC draft on the held-out part, per dataset, against the text that it is trained on."""
    adapter.eval()
    by_dataset: dict[str, list[Example]] = defaultdict(list)
    for example in corpus.dev:
        if len(by_dataset[example.dataset]) < per_dataset:
            by_dataset[example.dataset].append(example)
    rates = {}
    for dataset, examples in sorted(by_dataset.items()):
        drafts = []
        for example in examples:
            batch = corpus.batch([example])
            hidden, _ = adapter(batch.states, batch.frames)
            queries, blank = adapter.token_queries(hidden)[0], adapter.blank_logits(hidden)[0]
            drafts.append(targets.decode(greedy_tokens(queries, blank, targets.table)))
        rates[dataset] = word_error_rate([example.text for example in examples], drafts)
    adapter.train()
    return rates


@dataclass(frozen=True)
class Head:
    """An adapter with the vocabulary that its draft is written in, and what it learns. Several of them may share their layers."""

    adapter: Adapter
    targets: TargetVocabulary
    corpus: StateCorpus

    def loss(self, hidden: Tensor, frames: Tensor, batch: Batch, negatives: int, generator: torch.Generator) -> Tensor:
        queries, blank = self.adapter.token_queries(hidden), self.adapter.blank_logits(hidden).float()
        tokens, lengths = pad_targets([self.corpus.tokens_of(each) for each in batch.examples])
        table = self.targets.table
        sample = sample_vocabulary(tokens, len(table), negatives, generator)
        outputs = frames * self.adapter.config.outputs_per_frame
        return ctc_loss(queries, blank, outputs, table, sample, tokens, lengths)


def share_layers(adapters: Sequence[Adapter]) -> None:
    """Give all adapters the layers of the first."""
    first, *others = adapters
    for other in others:
        other.input, other.layers, other.norm = first.input, first.layers, first.norm


def parameters_of(heads: Sequence[Head]) -> list[nn.Parameter]:
    """Return what is trained; shared layers are in it once."""
    return list(dict.fromkeys(each for head in heads for each in head.adapter.parameters()))


def train_step(
    heads: Sequence[Head], batch: Batch, negatives: int, generator: torch.Generator, dtype: torch.dtype
) -> list[Tensor]:
    """The losses of a batch, one for each head. `dtype` is that of the adapter's matrix products."""
    adapter = heads[0].adapter
    phase = int(torch.randint(0, adapter.config.reduction, (), generator=generator))
    states, frames = stretch(batch.states, batch.frames, generator)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden, _ = adapter(mask(states, frames, generator), frames, phase)
        return [head.loss(hidden, frames, batch, negatives, generator) for head in heads]


def start_from(adapter: Adapter, path: Path) -> list[str]:
    """Take over an exported adapter's weights wherever name and shape agree; returns the names of the others."""
    own = adapter.state_dict()
    with safe_open(path, framework="pt") as stored:
        known = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
    fitting = {name: weight for name, weight in known.items() if name in own and own[name].shape == weight.shape}
    adapter.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())


def open_heads(arguments: argparse.Namespace, dtype: torch.dtype) -> list[Head]:
    """Return an adapter for each of the targets; all have the layers of the first."""
    heads = []
    for name, weights in zip(arguments.targets, [*arguments.weights, None], strict=False):
        targets = open_targets(name, weights)
        targets.table = targets.table.to(dtype)
        config = AdapterConfig(
            layers=arguments.layers,
            subsampling=arguments.subsampling,
            embedding_size=targets.table.shape[1],
            targets=targets.name,
            outputs_per_frame=targets.outputs_per_frame,
        )
        heads.append(Head(Adapter(config).train(), targets, StateCorpus(arguments.cache, targets)))
    for head, path in zip(heads, arguments.start_from, strict=False):
        print(f"{head.targets.name} begins anew: {', '.join(start_from(head.adapter, path))}", flush=True)
    share_layers([head.adapter for head in heads])
    for layer in heads[0].adapter.layers:
        layer.dropout = arguments.dropout
    return heads


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--targets", choices=TARGETS, nargs="+", default=["llm"], help="what the draft of each adapter is written in"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        default=[],
        help="for each: the LLM's GGUF, or Whisper's folder in CTranslate2's format",
    )
    parser.add_argument(
        "--start-from", type=Path, nargs="+", default=[], help="for each: adapter.safetensors whose weights a new run begins with"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--stop-at", type=int, help="end early at this step of the schedule")
    parser.add_argument("--frames-per-batch", type=int, default=1500, help="adapter frames (80 ms) a step, with padding")
    parser.add_argument("--negatives", type=int, default=4096)
    parser.add_argument("--peak-rate", type=float, default=1.2e-3)
    parser.add_argument("--warm-up", type=int, default=150, help="steps until the peak rate")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of matrix products")
    parser.add_argument("--held-out-clips", type=int, default=20, help="how many of each dataset an evaluation takes")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--subsampling", choices=("uniform", "stack"), default="uniform")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate-every", type=int, default=250)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)

    dtype: torch.dtype = getattr(torch, arguments.dtype)
    heads = open_heads(arguments, dtype)
    corpus = heads[0].corpus
    corpus.train = [each for each in corpus.train if all(head.corpus.has(each) for head in heads)]
    print(f"{len(corpus.train)} utterances to train on, {len(corpus.dev)} held out", flush=True)
    parameters = parameters_of(heads)
    optimizer = torch.optim.AdamW(parameters, lr=0, betas=(0.9, 0.98), weight_decay=0.01)
    names = ["checkpoint.pt", *(f"checkpoint-{head.targets.name}.pt" for head in heads[1:])]
    checkpoints = [arguments.out / name for name in names]
    for checkpoint, head in zip(checkpoints, heads, strict=True):
        first, history = resume(checkpoint, head.adapter, optimizer)
    generator = torch.Generator().manual_seed(arguments.seed + first)
    batches = corpus.epochs(DATASET_WEIGHTS, arguments.frames_per_batch, arguments.seed + first)

    last = arguments.stop_at or arguments.steps
    started, running = time.monotonic(), None
    for step in (progress := tqdm(range(first, last), initial=first, total=last, desc="ctc", mininterval=5)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.peak_rate, arguments.warm_up)
        losses = torch.stack(train_step(heads, corpus.batch(next(batches)), arguments.negatives, generator, dtype))
        optimizer.zero_grad()
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running = losses.detach() if running is None else 0.98 * running + 0.02 * losses.detach()
        progress.set_postfix(loss=" ".join(f"{loss:.3f}" for loss in running.tolist()))
        if (step + 1) % arguments.evaluate_every == 0 or step + 1 == last:
            row: dict[str, Any] = {"step": step + 1, "seconds": time.monotonic() - started}
            for number, head in enumerate(heads):
                rates = draft_error_rates(head.adapter, head.corpus, head.targets, arguments.held_out_clips)
                row |= {f"loss{number or ''}": running[number].item(), f"dev_wer{number or ''}": rates}
            history.append(row)
            print(json.dumps(row), flush=True)
            for checkpoint, head in zip(checkpoints, heads, strict=True):
                save_checkpoint(checkpoint, head.adapter, optimizer, step + 1, history)
            (arguments.out / "history.json").write_text(json.dumps(history, indent=1))


if __name__ == "__main__":
    main()
