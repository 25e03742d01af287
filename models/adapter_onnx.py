"""The adapter on ONNX Runtime: encoder states in, CTC draft and the LLM's input frames out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.backends import AdapterOutput, Float32, Int64
from models.encoder_onnx import open_session

NO_TOKEN = -1
OUTPUTS = ["blank_probability", "kept", "top_tokens", "top_probabilities", "residual"]


def run_starts(kept: Int64, best: Int64) -> npt.NDArray[np.intp]:
    """Where a new CTC run begins among kept frames: at another token, or after a dropped frame. kept, best [n]."""
    fresh = np.ones(len(kept), bool)
    fresh[1:] = (best[1:] != best[:-1]) | (kept[1:] != kept[:-1] + 1)
    return np.flatnonzero(fresh)


class OnnxAdapter:
    """The `Adapter` protocol.

    The LLM reads one frame per CTC run: the expected embedding of the run's best tokens (a "posterior bridge") plus a
    learned residual of the frame itself, averaged over the run.
    """

    def __init__(
        self, graph: Path, embedding: npt.NDArray[Any], boundary_before: Float32, boundary_after: Float32, threads: int
    ) -> None:
        """`embedding` is the LLM's table [vocabulary, embedding_size]; boundary vectors are [n, embedding_size]."""
        self._session = open_session(graph, threads)
        self._embedding = embedding
        self.boundary_before = boundary_before
        self.boundary_after = boundary_after

    def adapt(self, states: Sequence[Float32]) -> list[AdapterOutput]:
        return [self._adapt_one(each) for each in states]

    def _adapt_one(self, states: Float32) -> AdapterOutput:
        blank, kept, tokens, token_probabilities, residual = self._session.run(OUTPUTS, {"states": states})
        best_token = np.full(len(blank), NO_TOKEN, np.int64)
        probability = np.zeros(len(blank), np.float32)
        if len(kept):
            best_token[kept] = tokens[:, 0]
            probability[kept] = token_probabilities[:, 0] * (1 - blank[kept])
        frames = self._bridge(kept, tokens, token_probabilities, residual)
        return AdapterOutput(frames, best_token, probability, blank, kept, tokens, token_probabilities)

    def _bridge(self, kept: Int64, tokens: Int64, probabilities: Float32, residual: Float32) -> Float32:
        """One embedding per CTC run [runs, embedding_size]."""
        if not len(kept):
            return np.empty((0, residual.shape[1]), np.float32)
        shares = probabilities / probabilities.sum(-1, keepdims=True)
        embeddings = np.einsum("nk,nke->ne", shares, self._embedding[tokens].astype(np.float32)) + residual
        starts = run_starts(kept, tokens[:, 0])
        lengths = np.diff(np.append(starts, len(kept)))
        return (np.add.reduceat(embeddings, starts) / lengths[:, None]).astype(np.float32)
