"""Stage 2: teach the frozen LLM to read the adapter's frames, through boundary vectors, residual and further CTC training.

    python -m training.train_stage2 --ctc work/ctc/checkpoint.pt --cache work/cache/real ... --llm FILE.gguf \
        --answers work/answers.jsonl --out work/stage2 --text-steps 60 --speech-steps 300

First text alone, garbled as a CTC draft is, moves the boundary vectors until the LLM copies it; then speech, with
next-token loss and the CTC loss. Both mix transcription with instructions that the LLM has answered. Of the transcriptions of
speech, a share copies the draft that the LLM reads, errors and all; the target of the others is what was said.
Resumes from `OUT/checkpoint.pt`.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from export.checkpoints.hub import local_source
from training.adapter import Adapter
from training.bridge import bridge, ctc_runs, with_boundaries
from training.checkpoint import load_adapter, resume, save_checkpoint
from training.ctc import ctc_loss, sample_vocabulary
from training.data import Example, StateCorpus
from training.instructions import TRANSCRIBE
from training.llm import FrozenLlm, open_llm
from training.targets import open_targets
from training.train_ctc import DATASET_WEIGHTS, mask

BATCH = 12
ADAPTER_RATE = 1e-4


def garble(ids: Sequence[int], vocabulary_size: int, rng: random.Random) -> list[int]:
    """Return a text with tokens dropped, doubled and replaced, as in a bad draft. The LLM must learn to copy even this."""
    garbled = []
    for token in ids:
        draw = rng.random()
        if draw < 0.08:
            continue
        garbled.append(rng.randrange(17, vocabulary_size) if draw < 0.14 else rng.choice(ids) if draw < 0.22 else token)
        if draw > 0.95:
            garbled.append(token)
    return garbled or list(ids)


def blur(ids: Sequence[int], table: Tensor) -> Tensor:
    """Embeddings [tokens, embedding_size] of which a quarter are mixed with another token's, as an unsure draft's are."""
    exact = table[list(ids)].float()
    share = 1 - 0.5 * torch.rand(len(ids), 1) * (torch.rand(len(ids), 1) < 0.25)
    others = table[torch.randint(17, len(table), (len(ids),))].float()
    return share * exact + (1 - share) * others


def text_step(
    adapter: Adapter,
    llm: FrozenLlm,
    texts: list[str],
    answers: dict[str, list[tuple[str, str]]],
    share: float,
    rng: random.Random,
) -> tuple[Tensor, Tensor]:
    """Copy garbled text under a transcribing instruction, or answer an instruction about clean text as the LLM does."""
    if answers and rng.random() < share:
        instruction = rng.choice(list(answers))
        pairs = rng.sample(answers[instruction], min(BATCH, len(answers[instruction])))
        batch, targets = [llm.ids(text) for text, _ in pairs], [llm.ids(answer) for _, answer in pairs]
    else:
        instruction = TRANSCRIBE[0] if rng.random() < 0.4 else rng.choice(TRANSCRIBE)
        batch = targets = [garble(llm.ids(text), len(llm.table), rng) for text in rng.sample(texts, BATCH)]
    speech = [with_boundaries(adapter, blur(ids, llm.table)) for ids in batch]
    return llm.answer_loss([instruction] * len(speech), speech, targets)


def read_answers(path: Path | None) -> dict[str, list[tuple[str, str]]]:
    """(text, answer) by instruction; answers that were cut short are left out."""
    answers: dict[str, list[tuple[str, str]]] = {}
    for line in path.read_text().splitlines() if path else []:
        row = json.loads(line)
        if row["whole"]:
            answers.setdefault(row["instruction"], []).append((row["text"], row["answer"]))
    return answers


class SpeechTasks:
    """Draws batches of one instruction each: transcription, or an instruction whose answers are known."""

    def __init__(
        self,
        corpus: StateCorpus,
        answers: dict[str, list[tuple[str, str]]],
        llm: FrozenLlm,
        answer_share: float,
        rng: random.Random,
    ) -> None:
        self.rng, self.llm, self.answer_share = rng, llm, answer_share
        self.examples = [e for e in corpus.train if e.frames <= 200]
        self.weights = [DATASET_WEIGHTS.get(e.dataset, 1.0) for e in self.examples]
        by_text: dict[str, list[Example]] = {}
        for example in self.examples:
            by_text.setdefault(example.text, []).append(example)
        self.answers: dict[str, list[tuple[list[Example], list[int]]]] = {}
        for instruction, pairs in answers.items():
            known = [(by_text[text], llm.ids(answer)) for text, answer in pairs if text in by_text]
            if known:
                self.answers[instruction] = known

    def draw(self) -> tuple[str, list[Example], list[list[int]]]:
        if self.answers and self.rng.random() < self.answer_share:
            instruction = self.rng.choices(list(self.answers), [len(pairs) for pairs in self.answers.values()])[0]
            pairs = self.rng.sample(self.answers[instruction], min(BATCH, len(self.answers[instruction])))
            return instruction, [self.rng.choice(examples) for examples, _ in pairs], [answer for _, answer in pairs]
        pool = sorted(self.rng.choices(self.examples, self.weights, k=BATCH * 6), key=lambda e: e.frames)
        start = self.rng.randrange(len(pool) - BATCH)
        examples = pool[start : start + BATCH]
        return self.rng.choice(TRANSCRIBE), examples, [e.tokens for e in examples]


def speech_step(
    adapter: Adapter,
    llm: FrozenLlm,
    corpus: StateCorpus,
    tasks: SpeechTasks,
    threshold: float,
    ctc_weight: float,
    copy_share: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    instruction, examples, answers = tasks.draw()
    copies = instruction in TRANSCRIBE and tasks.rng.random() < copy_share
    batch = corpus.batch(examples)
    phase = int(torch.randint(0, adapter.config.reduction, (), generator=generator))
    # Words that a mask hides can be left out of a copy. To write them the LLM would learn to invent.
    states = mask(batch.states, batch.frames, generator) if copies else batch.states
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = adapter(states, batch.frames, phase)
        queries, blank = adapter.token_queries(hidden), adapter.blank(hidden)[..., 0]
    hidden, blank = hidden.float(), blank.float()
    speech, kept_answers = [], []
    for row, (length, answer) in enumerate(zip(batch.frames.tolist(), answers, strict=True)):
        runs = ctc_runs(queries[row, :length].detach(), blank[row, :length].detach(), llm.table, threshold)
        if len(runs.kept):
            speech.append(with_boundaries(adapter, bridge(adapter, hidden[row, :length], runs, llm.table)))
            kept_answers.append(runs.draft() if copies else answer)
    loss, accuracy = llm.answer_loss([instruction] * len(speech), speech, kept_answers)
    if ctc_weight:
        sample = sample_vocabulary(batch.targets, len(llm.table), 4096, generator)
        loss = loss + ctc_weight * ctc_loss(queries, blank, batch.frames, llm.table, sample, batch.targets, batch.target_lengths)
    return loss, accuracy


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ctc", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--cache", type=Path, nargs="+", required=True)
    parser.add_argument("--llm", type=Path, required=True)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--answer-share", type=float, default=0.25, help="share of steps that train on answers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text-steps", type=int, default=60)
    parser.add_argument("--speech-steps", type=int, default=300)
    parser.add_argument("--blank-threshold", type=float, default=0.5)
    parser.add_argument(
        "--ctc-weight", type=float, default=0.1, help="0 leaves the adapter's layers and so its draft as they are"
    )
    parser.add_argument("--copy-share", type=float, default=0.0, help="share of speech steps that copy the draft")
    parser.add_argument("--boundary-rate", type=float, default=1e-2, help="peak rate of the boundary vectors")
    parser.add_argument("--no-residual", action="store_true", help="plain posterior bridge: the residual stays zero")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=50)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)

    llm = open_llm(local_source(arguments.llm), dtype=torch.bfloat16)
    corpus = StateCorpus(arguments.cache, open_targets("llm", arguments.llm))
    adapter = load_adapter(arguments.ctc).train()
    boundary = [adapter.boundary_before, adapter.boundary_after]
    with torch.no_grad():
        for vectors in boundary:
            if not vectors.any():
                vectors.copy_(llm.table[torch.randint(17, 5000, (len(vectors),))].float() * 0.5)
    residual = [] if arguments.no_residual else list(adapter.residual.parameters())
    held = {id(p) for p in [*boundary, *adapter.residual.parameters()]}
    layers = [p for p in adapter.parameters() if id(p) not in held] if arguments.ctc_weight else []
    groups: list[dict[str, Any]] = [
        {"params": boundary, "peak": arguments.boundary_rate},
        {"params": [*residual, *layers], "peak": ADAPTER_RATE},
    ]
    optimizer = torch.optim.AdamW(
        [{"params": g["params"], "peak": g["peak"], "lr": 0.0} for g in groups if g["params"]], weight_decay=0.0
    )
    for parameter in adapter.parameters():
        parameter.requires_grad_(any(parameter is p for g in groups for p in g["params"]))

    checkpoint = arguments.out / "checkpoint.pt"
    first, history = resume(checkpoint, adapter, optimizer)
    rng = random.Random(arguments.seed + first)
    generator = torch.Generator().manual_seed(arguments.seed + first)
    answers = read_answers(arguments.answers)
    tasks = SpeechTasks(corpus, answers, llm, arguments.answer_share, rng)
    texts = sorted({example.text for example in corpus.train if 3 <= len(example.tokens) <= 60})
    total = arguments.text_steps + arguments.speech_steps
    started, running, running_accuracy = time.monotonic(), 0.0, 0.0
    for step in (progress := tqdm(range(first, total), initial=first, total=total, desc="reader", mininterval=5)):
        text = step < arguments.text_steps
        position = step / arguments.text_steps if text else (step - arguments.text_steps) / arguments.speech_steps
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (position * total + 1) / 10) * max(0.05, 1 - position)
        if text:
            loss, accuracy = text_step(adapter, llm, texts, answers, arguments.answer_share, rng)
        else:
            weights = arguments.blank_threshold, arguments.ctc_weight, arguments.copy_share
            loss, accuracy = speech_step(adapter, llm, corpus, tasks, *weights, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
        optimizer.step()
        decay = 0.95 if running else 0.0
        running = decay * running + (1 - decay) * loss.item()
        running_accuracy = decay * running_accuracy + (1 - decay) * accuracy.item()
        progress.set_postfix(loss=f"{running:.3f}", accuracy=f"{running_accuracy:.3f}")
        if (step + 1) % arguments.save_every == 0 or step + 1 in (arguments.text_steps, total):
            row = {"step": step + 1, "stage": "text" if text else "speech", "loss": running, "accuracy": running_accuracy}
            history.append(row | {"seconds": time.monotonic() - started})
            save_checkpoint(checkpoint, adapter, optimizer, step + 1, history)
            (arguments.out / "history.json").write_text(json.dumps(history, indent=1))


if __name__ == "__main__":
    main()
