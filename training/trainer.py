"""The run of `training.train`: states of the frozen encoder, steps through the frozen LLM, validation, checkpoints."""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from soundfile import LibsndfileError
from torch import Tensor
from tqdm import tqdm

from export.checkpoints.hub import Hub
from export.checkpoints.safetensors_file import CheckpointError
from models.projectors.subsample import MAX_FRAMES
from training.adapter import AdapterConfig, FrameAdapter
from training.cache_states import (
    MAX_SECONDS,
    MIN_SECONDS,
    CachedUtterance,
    is_held_out,
    open_cache,
    open_states,
    read_index,
    states_of,
)
from training.checkpoint import export_adapter, resume, save_checkpoint
from training.frozen_encoder import FrozenEncoder
from training.llm import FrozenLlm, open_llm
from training.manifest import ManifestError, Utterance, read_manifest
from training.train_ctc import learning_rate
from training.word_errors import word_error_rate

HEAD_SIZE = 64
POOL_BATCHES = 16
"""Batches that are made together of utterances of similar length."""
FIXED = ("encoder", "llm", "manifest", "layers", "width", "heads", "reduction", "steps", "batch", "learning_rate", "seed")
"""Settings under which a run goes on; with others it would be another run."""


class TrainingError(ValueError):
    """Training cannot begin. The message says why in one sentence."""


class SpeechStates:
    """The encoder's states of the recordings of a manifest, kept in a folder; the encoder is run once over each."""

    def __init__(self, folder: Path, encoder: FrozenEncoder, utterances: Sequence[Utterance]) -> None:
        with open_cache(folder, encoder.width) as cache:
            recordings = {each.audio: each for each in utterances if each.audio not in cache.done}
            for utterance, states in states_of(list(recordings.values()), Path(), encoder):
                cache.append(CachedUtterance(utterance.audio, "", "", 0, 0), states)
        index = read_index(folder)
        self._places = {entry.id: entry for entry in index}
        total = sum(entry.frames for entry in index)
        self._states = open_states(folder, total, encoder.width) if total else np.empty((0, encoder.width), np.float16)

    def keep(self, utterances: Sequence[Utterance]) -> list[Utterance]:
        """Return those whose recordings are neither too short nor too long."""
        return [each for each in utterances if each.audio in self._places]

    def count(self, utterance: Utterance) -> int:
        """Return how many states an utterance has."""
        return self._places[utterance.audio].frames

    def batch(self, utterances: Sequence[Utterance], reduction: int) -> tuple[Tensor, Tensor]:
        """Return states [batch, longest, width], zeros behind the shorter ones, and how many adapter frames each has [batch]."""
        counts = [self.count(each) for each in utterances]
        states = np.zeros((len(utterances), max(counts), self._states.shape[1]), np.float32)
        for row, (utterance, count) in enumerate(zip(utterances, counts, strict=True)):
            offset = self._places[utterance.audio].offset
            states[row, :count] = self._states[offset : offset + count]
        return torch.from_numpy(states), torch.tensor([-(-count // reduction) for count in counts])


def draw_batches(lengths: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of numbers of utterances for ever: each once an epoch, those of similar length together."""
    for epoch in range(sys.maxsize):
        generator = random.Random(f"{seed} {epoch}")
        order = generator.sample(range(len(lengths)), len(lengths))
        pool = POOL_BATCHES * size
        pools = [sorted(order[at : at + pool], key=lengths.__getitem__) for at in range(0, len(order), pool)]
        batches = [each[at : at + size] for each in pools for at in range(0, len(each), size)]
        generator.shuffle(batches)
        yield from batches


@dataclass(frozen=True)
class Trainer:
    """The parts of a run; the adapter is on the LLM's device."""

    adapter: FrameAdapter
    llm: FrozenLlm
    states: SpeechStates

    def speech(self, utterances: Sequence[Utterance]) -> list[Tensor]:
        """Return what the LLM reads of utterances, [frames, embedding_size] each."""
        device = self.llm.table.device
        states, frames = (each.to(device) for each in self.states.batch(utterances, self.adapter.config.reduction))
        fast = torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else nullcontext()
        with fast:
            vectors = self.adapter.frames(states, frames)
        return [row[:count].float() for row, count in zip(vectors, frames.tolist(), strict=True)]

    def loss(self, utterances: Sequence[Utterance]) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the texts' tokens, and the share of them predicted right."""
        answers = [self.llm.ids(each.text) for each in utterances]
        return self.llm.answer_loss([each.instruction for each in utterances], self.speech(utterances), answers)

    @torch.inference_mode()
    def validate(self, utterances: Sequence[Utterance], size: int, max_tokens: int) -> dict[str, float]:
        """Return loss, accuracy and word error rate of greedy answers over held-out utterances."""
        self.adapter.eval()
        totals, texts = np.zeros(2), []
        for at in tqdm(range(0, len(utterances), size), desc="validation", leave=False):
            batch = utterances[at : at + size]
            totals += len(batch) * np.array([float(each) for each in self.loss(batch)])
            answers = self.llm.generate([each.instruction for each in batch], self.speech(batch), max_tokens)
            texts += [self.llm.tokeniser.decode(answer).strip() for answer in answers]
        self.adapter.train()
        loss, accuracy = totals / len(utterances)
        rate = word_error_rate([each.text for each in utterances], texts)
        return {"validation_loss": float(loss), "validation_accuracy": float(accuracy), "word_error_rate": rate}


def train(trainer: Trainer, train_on: Sequence[Utterance], held_out: Sequence[Utterance], arguments: argparse.Namespace) -> None:
    """Take the steps that are left, with a checkpoint and a line of history now and then. Steps depend on their number alone."""
    adapter = trainer.adapter.train()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint = arguments.out / "checkpoint.pt"
    first, history = resume(checkpoint, adapter, optimizer)
    batches = draw_batches([trainer.states.count(each) for each in train_on], arguments.batch, arguments.seed)
    for _ in range(first):
        next(batches)
    warm_up = min(arguments.warm_up, max(1, arguments.steps // 2))
    started, running = time.monotonic(), 0.0
    for step in (progress := tqdm(range(first, arguments.steps), initial=first, total=arguments.steps, desc="adapter")):
        torch.manual_seed(arguments.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.learning_rate, warm_up)
        loss, accuracy = trainer.loss([train_on[number] for number in next(batches)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == first else 0.95 * running + 0.05 * loss.item()
        progress.set_postfix(loss=f"{running:.3f}", accuracy=f"{accuracy.item():.3f}")
        last = step + 1 == arguments.steps
        if last or (step + 1) % arguments.validate_every == 0:
            row = {"step": step + 1, "loss": running, "seconds": time.monotonic() - started}
            history.append(row | trainer.validate(held_out, arguments.batch, arguments.validation_tokens))
            progress.write(", ".join(f"{name} {value:.4g}" for name, value in history[-1].items()))
            (arguments.out / "history.json").write_text(json.dumps(history, indent=1))
        if last or (step + 1) % arguments.save_every == 0:
            save_checkpoint(checkpoint, adapter, optimizer, step + 1, history)


def read_split(manifest: Path, validation: Path | None) -> tuple[list[Utterance], list[Utterance]]:
    """Return the utterances to train on, and those that are held out: a fixed one in 25, or all of another manifest."""
    given = list(read_manifest(manifest))
    if validation is not None:
        return _placed(given, manifest), _placed(list(read_manifest(validation)), validation)
    held_out = [each for each in given if is_held_out(each.audio)]
    return _placed([each for each in given if not is_held_out(each.audio)], manifest), _placed(held_out, manifest)


def _placed(utterances: Sequence[Utterance], manifest: Path) -> list[Utterance]:
    """Return utterances with the paths of their recordings."""
    return [replace(each, audio=str(manifest.resolve().parent / each.audio)) for each in utterances]


def require_same_run(path: Path, values: dict[str, Any]) -> None:
    """Write the settings of a run, or compare them with those that it began with. Raises `TrainingError`."""
    if not path.exists():
        path.write_text(json.dumps(values, indent=1))
        return
    begun = json.loads(path.read_text())
    if changed := [name for name, value in values.items() if begun.get(name) != value]:
        name = changed[0]
        raise TrainingError(f"{path.parent} was begun with {name} {begun.get(name)}, not {values[name]}: name another folder")


def new_adapter(arguments: argparse.Namespace, encoder: FrozenEncoder, llm: FrozenLlm) -> FrameAdapter:
    """Return the adapter before training. Raises `TrainingError` for sizes that do not go together."""
    embedding_size = llm.table.shape[1]
    width = arguments.width or embedding_size
    heads = arguments.heads or max(1, width // HEAD_SIZE)
    if width % (2 * heads):
        raise TrainingError(f"--heads {heads} leaves heads of odd or broken size of a width of {width}")
    reduction = arguments.reduction or encoder.reduction
    if math.ceil(MAX_SECONDS * encoder.section.states_per_s / reduction) > MAX_FRAMES:
        raise TrainingError(f"--reduction {reduction} leaves more than {MAX_FRAMES} frames of {MAX_SECONDS} s of audio")
    torch.manual_seed(arguments.seed)
    adapter = FrameAdapter(
        AdapterConfig(
            encoder_width=encoder.width,
            width=width,
            layers=arguments.layers,
            heads=heads,
            feed_forward=4 * width,
            embedding_size=embedding_size,
            reduction=reduction,
            boundary_vectors=0,
            dropout=arguments.dropout,
            head="frames",
        )
    )
    adapter.match(llm.table)
    return adapter


def run(arguments: argparse.Namespace) -> Path:
    """Train, and return the adapter's file."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    arguments.out.mkdir(parents=True, exist_ok=True)
    require_same_run(arguments.out / "settings.json", {name: _plain(getattr(arguments, name)) for name in FIXED})
    train_on, held_out = read_split(arguments.manifest, arguments.validation)
    held_out = held_out[: arguments.validation_lines]
    if not train_on or not held_out:
        counts = f"{len(train_on)} lines to train on and {len(held_out)} held-out ones"
        raise TrainingError(
            f"{arguments.manifest} gives {counts}: both are needed, and --validation names a manifest of the latter"
        )
    hub = Hub(arguments.out / "checkpoints")
    encoder = FrozenEncoder(hub.get(arguments.encoder), arguments.out / "encoder", arguments.threads)
    dtype = arguments.dtype or ("bfloat16" if device == "cuda" else "float32")
    llm = open_llm(hub.get(arguments.llm), device, getattr(torch, dtype))
    adapter = new_adapter(arguments, encoder, llm).to(device)
    states = SpeechStates(arguments.out / "states", encoder, [*train_on, *held_out])
    kept, tried = states.keep(train_on), states.keep(held_out)
    print(
        f"{len(kept)} lines to train on, {len(tried)} held out, {sum(each.numel() for each in adapter.parameters()):,} parameters"
    )
    if left_out := len(train_on) + len(held_out) - len(kept) - len(tried):
        print(f"{left_out} lines are left out: their recordings are under {MIN_SECONDS} s or over {MAX_SECONDS} s")
    if not kept or not tried:
        raise TrainingError(f"no recording is left that has {MIN_SECONDS} to {MAX_SECONDS} s")
    train(Trainer(adapter, llm, states), kept, tried, arguments)
    export_adapter(arguments.out / "adapter.safetensors", adapter)
    return Path(arguments.out / "adapter.safetensors")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


PROBLEMS = (TrainingError, ManifestError, CheckpointError, LibsndfileError, BlockingIOError)
"""Errors that a user can mend; each is told in a sentence."""
