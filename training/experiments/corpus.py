"""Cached encoder states with the letters that were spoken, in batches that are the same for every setting."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.cache_states import WIDTH, CachedUtterance, is_held_out, open_states, read_index
from training.data import is_plausible

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
"""The target's symbols: words as they are spelt, without case and punctuation."""
LONGEST_REDUCTION = 16
MAX_STATES = 600
"""Utterances of up to 12 s: 50 states a second."""
POOL = 200


def spell(text: str) -> list[int]:
    """Return the numbers of the letters of a text; of characters that are none, dashes become blanks and others are left out."""
    words = re.sub(f"[^{LETTERS}]", "", re.sub("[-\u2013\u2014]", " ", text.lower())).split()
    return [LETTERS.index(letter) for letter in " ".join(words)]


def read_letters(numbers: Sequence[int]) -> str:
    return " ".join("".join(LETTERS[number] for number in numbers).split())


@dataclass(frozen=True)
class Spoken:
    """An utterance: the place of its states in a cache, and its letters. `states` is rounded down to whole frames of 16."""

    id: str
    dataset: str
    cache: int
    offset: int
    states: int
    letters: tuple[int, ...]


@dataclass(frozen=True)
class SpokenBatch:
    """States [batch, longest, width] float32 padded with 0, and their count [batch]; letters padded with 0, and their count."""

    states: Tensor
    lengths: Tensor
    letters: Tensor
    letter_lengths: Tensor


class SpokenCorpus:
    """The utterances of caches that a CTC of one symbol for each encoder state can spell, split by a hash of the id."""

    def __init__(self, caches: Sequence[Path], held_out: int) -> None:
        self.train: list[Spoken] = []
        held: list[Spoken] = []
        self._states = []
        for number, folder in enumerate(caches):
            index = read_index(folder)
            self._states.append(open_states(folder, sum(entry.frames for entry in index)))
            for entry in index:
                spoken = _read_entry(entry, number)
                if spoken is not None:
                    (held if is_held_out(entry.id) else self.train).append(spoken)
        self.held_out = _take_evenly(held, held_out)

    def batch(self, utterances: Sequence[Spoken]) -> SpokenBatch:
        states = np.zeros((len(utterances), max(each.states for each in utterances), WIDTH), np.float32)
        letters = torch.zeros(len(utterances), max(len(each.letters) for each in utterances), dtype=torch.long)
        for row, each in enumerate(utterances):
            states[row, : each.states] = self._states[each.cache][each.offset : each.offset + each.states]
            letters[row, : len(each.letters)] = torch.tensor(each.letters)
        return SpokenBatch(
            torch.from_numpy(states),
            torch.tensor([each.states for each in utterances]),
            letters,
            torch.tensor([len(each.letters) for each in utterances]),
        )

    def plan_batches(self, steps: int, states_per_batch: int, seed: int) -> list[list[Spoken]]:
        """Return the utterances of every step: shuffled epochs, of similar length within a batch. A step knows no setting."""
        rng = random.Random(seed)
        planned: list[list[Spoken]] = []
        while len(planned) < steps:
            order = rng.sample(self.train, len(self.train))
            epoch = [
                batch
                for start in range(0, len(order), POOL)
                for batch in group_by_length(order[start : start + POOL], states_per_batch)
            ]
            rng.shuffle(epoch)
            planned += epoch
        return planned[:steps]


def group_by_length(utterances: Sequence[Spoken], states_per_batch: int) -> list[list[Spoken]]:
    """Return batches of similar length, of so many states at most, padding included, unless a single utterance has more."""
    batches: list[list[Spoken]] = []
    for each in sorted(utterances, key=lambda spoken: (spoken.states, spoken.id)):
        if batches and (len(batches[-1]) + 1) * each.states <= states_per_batch:
            batches[-1].append(each)
        else:
            batches.append([each])
    return batches


def _read_entry(entry: CachedUtterance, cache: int) -> Spoken | None:
    states = min(entry.frames, MAX_STATES + 1) // LONGEST_REDUCTION * LONGEST_REDUCTION
    if entry.frames > MAX_STATES or not states or not is_plausible(entry):
        return None
    if any(character.isdigit() for character in entry.text):
        return None  # Nothing tells how a number was spoken.
    letters = tuple(spell(entry.text))
    needed = len(letters) + sum(a == b for a, b in pairwise(letters))
    return Spoken(entry.id, entry.dataset, cache, entry.offset, states, letters) if letters and needed <= states else None


def _take_evenly(utterances: Sequence[Spoken], count: int) -> list[Spoken]:
    """Return so many utterances, as many of each data set as there are, in the order of their ids."""
    by_dataset: dict[str, list[Spoken]] = {}
    for each in sorted(utterances, key=lambda spoken: spoken.id):
        by_dataset.setdefault(each.dataset, []).append(each)
    taken: list[Spoken] = []
    for row in range(len(utterances)):
        for dataset in sorted(by_dataset):
            if len(taken) < count and row < len(by_dataset[dataset]):
                taken.append(by_dataset[dataset][row])
    return taken
