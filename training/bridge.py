"""The input of the LLM for an utterance: one vector per CTC run, in the LLM's embedding space.

The same as `models.ctc` computes in serving, with gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.adapter import Adapter

TOP_TOKENS = 8


@dataclass(frozen=True)
class Runs:
    """CTC runs of an utterance: kept frames, their best tokens with probabilities [kept, 8], the run of each frame [kept]."""

    kept: Tensor
    tokens: Tensor
    shares: Tensor
    run: Tensor

    def draft(self) -> list[int]:
        """Return the best token of each run, that of its first frame."""
        first = torch.diff(self.run, prepend=torch.tensor([-1])) > 0
        best: list[int] = self.tokens[first, 0].tolist()
        return best


@torch.no_grad()
def score_frames(
    queries: Tensor, blank_probability: Tensor, table: Tensor, blank_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frames [kept] that are not blank, their best tokens and the probabilities of these [kept, 8].

    queries [frames, embedding_size], blank_probability [frames].
    """
    kept = (blank_probability < blank_threshold).nonzero()[:, 0]
    probabilities, tokens = (queries[kept].to(table.dtype) @ table.T).float().softmax(-1).topk(TOP_TOKENS, -1)
    return kept, tokens, probabilities


@torch.no_grad()
def ctc_runs(queries: Tensor, blank_logits: Tensor, table: Tensor, blank_threshold: float) -> Runs:
    """queries [frames, embedding_size], blank_logits [frames]."""
    kept, tokens, probabilities = score_frames(queries, blank_logits.sigmoid(), table, blank_threshold)
    fresh = torch.ones(len(kept), dtype=torch.bool)
    fresh[1:] = (tokens[1:, 0] != tokens[:-1, 0]) | (kept[1:] != kept[:-1] + 1)
    return Runs(kept, tokens, probabilities / probabilities.sum(-1, keepdim=True), fresh.cumsum(0) - 1)


def bridge(adapter: Adapter, hidden: Tensor, runs: Runs, table: Tensor) -> Tensor:
    """Vectors [runs, embedding_size] float32: expected embeddings plus the learned residual, averaged over each run."""
    expected = torch.einsum("nk,nke->ne", runs.shares, table[runs.tokens].float())
    frames = expected + adapter.residual(hidden[runs.kept])
    count = int(runs.run[-1]) + 1 if len(runs.run) else 0
    sums = torch.zeros(count, frames.shape[1]).index_add(0, runs.run, frames)
    return sums / torch.bincount(runs.run, minlength=count)[:, None]


def with_boundaries(adapter: Adapter, frames: Tensor) -> Tensor:
    return torch.cat([adapter.boundary_before, frames, adapter.boundary_after])
