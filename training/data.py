"""Batches of cached encoder states with their target tokens."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.cache_states import WIDTH, CachedUtterance, is_held_out, open_states, read_index
from training.targets import TargetVocabulary

REDUCTION = 4
MIN_MEAN_LOG_PROBABILITY = -1.0


@dataclass(frozen=True)
class Example:
    """An utterance of cache number `cache`, of so many adapter frames; `tokens` are the symbols that its `text` has."""

    entry: CachedUtterance
    text: str
    tokens: list[int]
    cache: int
    frames: int

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def dataset(self) -> str:
        return self.entry.dataset

    @property
    def offset(self) -> int:
        return self.entry.offset


@dataclass(frozen=True)
class Batch:
    """States [batch, longest, width] float32 zero-padded, adapter frames, targets padded with 0, and the examples."""

    states: Tensor
    frames: Tensor
    targets: Tensor
    target_lengths: Tensor
    examples: list[Example]


def pad_targets(targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the targets of a batch [batch, longest] padded with 0, and their lengths [batch]."""
    lengths = torch.tensor([len(each) for each in targets])
    padded = torch.zeros(len(targets), int(lengths.max()), dtype=torch.long)
    for row, each in enumerate(targets):
        padded[row, : len(each)] = torch.tensor(each)
    return padded, lengths


def is_plausible(entry: CachedUtterance) -> bool:
    """Return whether a transcript is no loop and no wild guess, or none was written."""
    repeats = re.search(r"(\b.{3,}?)\1{3,}", entry.text) is not None
    return not entry.tokens or (not repeats and entry.mean_log_probability > MIN_MEAN_LOG_PROBABILITY)


class StateCorpus:
    """All utterances of some caches, split into train and dev by a hash of the id (an utterance's variants stay together)."""

    def __init__(self, caches: list[Path], targets: TargetVocabulary) -> None:
        self.train: list[Example] = []
        self.dev: list[Example] = []
        self.states = []
        self._tokens: dict[tuple[int, int], list[int]] = {}
        for number, folder in enumerate(caches):
            index = read_index(folder)
            self.states.append(open_states(folder, sum(entry.frames for entry in index)))
            for entry in index:
                text, tokens = targets.text(entry), targets.encode(entry)
                if text == entry.text and not is_plausible(entry):
                    continue
                repeats = sum(a == b for a, b in pairwise(tokens))
                frames = entry.frames // REDUCTION
                if not tokens or len(tokens) + repeats > frames * targets.outputs_per_frame:
                    continue
                example = Example(entry, text, tokens, number, frames)
                self._tokens[number, entry.offset] = tokens
                (self.dev if is_held_out(entry.id) else self.train).append(example)

    def has(self, example: Example) -> bool:
        """Return whether an utterance of a corpus of the same caches is in this one too."""
        return (example.cache, example.offset) in self._tokens

    def tokens_of(self, example: Example) -> list[int]:
        """Return this corpus's symbols of an utterance that it has."""
        return self._tokens[example.cache, example.offset]

    def batch(self, examples: list[Example]) -> Batch:
        longest = max(example.frames for example in examples)
        states = np.zeros((len(examples), longest * REDUCTION, WIDTH), np.float32)
        targets, target_lengths = pad_targets([example.tokens for example in examples])
        for row, example in enumerate(examples):
            length = example.frames * REDUCTION
            states[row, :length] = self.states[example.cache][example.offset : example.offset + length]
        return Batch(
            torch.from_numpy(states),
            torch.tensor([example.frames for example in examples]),
            targets,
            target_lengths,
            examples,
        )

    def epochs(self, weights: dict[str, float], frames_per_batch: int, seed: int) -> Iterator[list[Example]]:
        """Endless shuffled batches of similar length. A dataset of weight 2 is seen twice an epoch, of weight 0.5 half."""
        rng = random.Random(seed)
        while True:
            chosen = []
            for example in self.train:
                weight = weights.get(example.dataset, 1.0)
                chosen += [example] * (int(weight) + (rng.random() < weight % 1))
            rng.shuffle(chosen)
            pools = [sorted(chosen[i : i + 800], key=lambda e: e.frames) for i in range(0, len(chosen), 800)]
            batches = []
            for pool in pools:
                batch: list[Example] = []
                for example in pool:
                    if batch and (len(batch) + 1) * max(example.frames, batch[-1].frames) > frames_per_batch:
                        batches.append(batch)
                        batch = []
                    batch.append(example)
                if batch:
                    batches.append(batch)
            rng.shuffle(batches)
            yield from batches
