"""CTC: the runs of a path, and the projector's output from its scores: the draft, and one embedding per run for the LLM.

The embedding of a frame is the expected embedding of its best tokens (a "posterior bridge") plus a learned residual of its own;
the embedding of a run is the mean of its frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.protocols import CtcDraft, Float32, Int64, ProjectorOutput

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


def run_starts(kept: Int64, best: Int64) -> npt.NDArray[np.intp]:
    """Return where a run begins among kept frames: at another token, or after a dropped frame. kept, best [n]."""
    fresh = np.ones(len(kept), bool)
    fresh[1:] = (best[1:] != best[:-1]) | (kept[1:] != kept[:-1] + 1)
    return np.flatnonzero(fresh)


def frame_embeddings(table: npt.NDArray[Any], tokens: Int64, probabilities: Float32, residual: Float32) -> Float32:
    """Return the embedding of each kept frame [n, embedding_size].

    `table` [vocabulary, embedding_size] is the LLM's; tokens and probabilities [n, K], residual [n, embedding_size].
    """
    if not len(tokens):
        return np.empty((0, residual.shape[1]), np.float32)
    shares = probabilities / probabilities.sum(-1, keepdims=True)
    return np.asarray(np.einsum("nk,nke->ne", shares, table[tokens].astype(np.float32)) + residual, np.float32)


def projector_output(
    blank_probability: Float32, kept: Int64, tokens: Int64, probabilities: Float32, embeddings: Float32
) -> ProjectorOutput:
    """Return an utterance's output from blank_probability [frames] and its kept frames' numbers, tokens and embeddings."""
    best_token = np.full(len(blank_probability), NO_TOKEN, np.int64)
    probability = np.zeros(len(blank_probability), np.float32)
    if len(kept):
        best_token[kept] = tokens[:, 0]
        probability[kept] = probabilities[:, 0] * (1 - blank_probability[kept])
    draft = CtcDraft(best_token, probability, blank_probability, kept, tokens, probabilities)
    return ProjectorOutput(_average_over_runs(kept, tokens, embeddings), draft)


def _average_over_runs(kept: Int64, tokens: Int64, embeddings: Float32) -> Float32:
    """Return one embedding per run [runs, embedding_size]."""
    if not len(kept):
        return embeddings
    starts = run_starts(kept, tokens[:, 0])
    lengths = np.diff(np.append(starts, len(kept)))
    return (np.add.reduceat(embeddings, starts) / lengths[:, None]).astype(np.float32)
