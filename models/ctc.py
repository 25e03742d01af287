"""From the adapter's scores to what the engine reads: the CTC draft, and one frame per CTC run for the LLM.

A frame is the expected embedding of its best tokens (a "posterior bridge") plus a learned residual of its own, averaged over
the run.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.protocols import AdapterOutput, Float32, Int64

NO_TOKEN = -1


def run_starts(kept: Int64, best: Int64) -> npt.NDArray[np.intp]:
    """Where a new CTC run begins among kept frames: at another token, or after a dropped frame. kept, best [n]."""
    fresh = np.ones(len(kept), bool)
    fresh[1:] = (best[1:] != best[:-1]) | (kept[1:] != kept[:-1] + 1)
    return np.flatnonzero(fresh)


def frame_embeddings(table: npt.NDArray[Any], tokens: Int64, probabilities: Float32, residual: Float32) -> Float32:
    """What each kept frame is to the LLM [n, embedding_size].

    `table` [vocabulary, embedding_size] is the LLM's; tokens and probabilities [n, K], residual [n, embedding_size].
    """
    if not len(tokens):
        return np.empty((0, residual.shape[1]), np.float32)
    shares = probabilities / probabilities.sum(-1, keepdims=True)
    return np.asarray(np.einsum("nk,nke->ne", shares, table[tokens].astype(np.float32)) + residual, np.float32)


def adapter_output(
    blank_probability: Float32, kept: Int64, tokens: Int64, probabilities: Float32, embeddings: Float32
) -> AdapterOutput:
    """One utterance's, of blank_probability [frames] and its kept frames' numbers, best tokens and `frame_embeddings`."""
    best_token = np.full(len(blank_probability), NO_TOKEN, np.int64)
    probability = np.zeros(len(blank_probability), np.float32)
    if len(kept):
        best_token[kept] = tokens[:, 0]
        probability[kept] = probabilities[:, 0] * (1 - blank_probability[kept])
    frames = _average_over_runs(kept, tokens, embeddings)
    return AdapterOutput(frames, best_token, probability, blank_probability, kept, tokens, probabilities)


def _average_over_runs(kept: Int64, tokens: Int64, embeddings: Float32) -> Float32:
    """One embedding per CTC run [runs, embedding_size]."""
    if not len(kept):
        return embeddings
    starts = run_starts(kept, tokens[:, 0])
    lengths = np.diff(np.append(starts, len(kept)))
    return (np.add.reduceat(embeddings, starts) / lengths[:, None]).astype(np.float32)
