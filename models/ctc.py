"""The runs of a CTC path, and its transcript."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.protocols import Int64

NO_TOKEN = -1
"""Stands for the blank in a path."""


@dataclass(frozen=True)
class Run:
    """A token of a CTC path with the numbers of its first and last frame."""

    token: int
    first: int
    last: int


def find_runs(best_token: Int64 | Sequence[int]) -> list[Run]:
    """Return the runs of a path [frames]: neighbouring frames with one token are one run, blanks (negative) are in none."""
    if not len(best_token):
        return []
    path = np.asarray(best_token, np.int64)
    first = np.flatnonzero(np.diff(path, prepend=path[0] - 1))
    last = np.append(first[1:], len(path)) - 1
    runs = zip(path[first].tolist(), first.tolist(), last.tolist(), strict=True)
    return [Run(*run) for run in runs if run[0] >= 0]


def collapse(best_token: Int64) -> tuple[int, ...]:
    """Return the greedy transcript of a path [frames]."""
    return tuple(run.token for run in find_runs(best_token))
