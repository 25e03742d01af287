"""Encoder states in, CTC draft and the LLM's input frames out: the chain of operators."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.adapter.weights import AdapterWeights, LayerWeights
from kernels.reference.weights import LinearWeights


class Operators(Protocol):
    """The operators that `kernels.reference` and `kernels.triton` offer; `kernels.reference` has their contracts."""

    def linear(
        self,
        x: Tensor,
        layer: LinearWeights,
        live: Tensor,
        out_dtype: torch.dtype,
        residual: Tensor | None = None,
        gelu: bool = False,
    ) -> Tensor: ...

    def attention(self, qkv: Tensor, boundaries: Tensor, heads: int, cosines: Tensor, sines: Tensor) -> Tensor: ...

    def blank_filter(self, blank_logits: Tensor, live: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]: ...

    def ctc_topk(
        self, queries: Tensor, kept: Tensor, count: Tensor, table: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class UtteranceFrames:
    """One utterance: the outputs of the adapter's ONNX graph, but for `embeddings`, which is what two of them lead to.

    blank_probability [frames]; kept [kept] numbers of frames; tokens and probabilities [kept, 8]; embeddings [kept,
    embedding_size]: the expected embedding of the 8 tokens plus the frame's residual, not averaged over CTC runs yet.
    """

    blank_probability: npt.NDArray[np.float32]
    kept: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]


class AdapterFrames(NamedTuple):
    """The whole batch, on the device or copied from it. Of kept [rows], tokens and probabilities [rows, 8] and embeddings [rows,
    embedding_size] only the first `kept_count` [1] rows are defined, of blank_probability [rows] those of utterances.
    """

    blank_probability: Tensor
    kept: Tensor
    kept_count: Tensor
    tokens: Tensor
    probabilities: Tensor
    embeddings: Tensor

    def of_utterances(self, frames: Sequence[int]) -> list[UtteranceFrames]:
        """Copies to the host, cut by the utterances' numbers of frames."""
        count = int(self.kept_count)
        edges = np.concatenate([[0], np.cumsum(frames)])
        blank = self.blank_probability[: int(edges[-1])].cpu().numpy()
        kept = self.kept[:count].cpu().numpy().astype(np.int64)
        tokens = self.tokens[:count].cpu().numpy().astype(np.int64)
        probabilities, embeddings = self.probabilities[:count].cpu().numpy(), self.embeddings[:count].cpu().numpy()
        utterances = []
        for start, end in pairwise(edges):
            first, last = np.searchsorted(kept, (start, end))
            utterances.append(
                UtteranceFrames(
                    blank[start:end].copy(),
                    kept[first:last] - start,
                    tokens[first:last].copy(),
                    probabilities[first:last].copy(),
                    embeddings[first:last].copy(),
                )
            )
        return utterances


def adapt(weights: AdapterWeights, operators: Operators, states: Tensor, boundaries: Tensor) -> AdapterFrames:
    """states [rows * reduction, encoder_width]: the utterances' encoder states one after the other, without padding between.

    `boundaries` [utterances + 1] int32, ascending from 0, counts adapter frames; rows after the last one are buffer space and
    cost nothing on a GPU. Nothing here waits for the device or depends on what `boundaries` holds, so the call can be captured
    into a CUDA graph.
    """
    rows = len(states) // weights.reduction
    if len(states) % weights.reduction or states.shape[1] != weights.encoder_width or rows > weights.max_frames:
        raise ValueError(
            f"states of {tuple(states.shape)}: they must be {weights.encoder_width} wide, a multiple of {weights.reduction},"
            f" and at most {weights.max_frames} frames"
        )
    # Subsampling and stacking are no work: only the distance between the rows that the first product reads.
    x = states.view(rows, -1) if weights.is_stacking else states[:: weights.reduction]
    live, dtype = boundaries[-1:], weights.dtype
    x = operators.linear(x, weights.input, live, dtype)
    for layer in weights.layers:
        x = transform(weights, layer, operators, x, boundaries)
    queries = operators.linear(x, weights.queries, live, dtype)
    side = operators.linear(x, weights.side, live, torch.float32)
    residual, blank_logits = side[:, : weights.embedding_size], side[:, weights.embedding_size]
    blank_probability, kept, count = operators.blank_filter(blank_logits, live, weights.blank_threshold)
    tokens, probabilities, embeddings = operators.ctc_topk(queries, kept, count, weights.table, residual)
    return AdapterFrames(blank_probability, kept, count, tokens, probabilities, embeddings)


def transform(weights: AdapterWeights, layer: LayerWeights, operators: Operators, x: Tensor, boundaries: Tensor) -> Tensor:
    live, dtype = boundaries[-1:], weights.dtype
    qkv = operators.linear(x, layer.qkv, live, dtype)
    attended = operators.attention(qkv, boundaries, weights.heads, weights.cosines, weights.sines)
    x = operators.linear(attended, layer.attention_out, live, dtype, residual=x)
    inner = operators.linear(x, layer.feed_forward_in, live, dtype, gelu=True)
    return operators.linear(inner, layer.feed_forward_out, live, dtype, residual=x)
