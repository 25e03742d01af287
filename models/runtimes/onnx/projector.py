"""Projectors on ONNX Runtime: encoder states in, the LLM's input frames and perhaps a CTC draft out.

Our own adapter gives the LLM one embedding for each run of the CTC path: the mean of its frames. The embedding of a frame is
the expected embedding of its best tokens (a "posterior bridge") plus a learned residual.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.ctc import NO_TOKEN
from models.protocols import CtcDraft, Float32, Int64, ProjectorOutput
from models.runtimes.onnx.session import open_session, tensor_shapes

ADAPTER_OUTPUTS = ["blank_probability", "kept", "top_tokens", "top_probabilities", "residual"]
HEAD_OUTPUTS = ["blank_probability", "top_tokens", "top_probabilities"]
DRAFTING_OUTPUTS = ["frames", *HEAD_OUTPUTS]


class OnnxFrameProjector:
    """Implements `models.protocols.Projector` by a published model's: one utterance a run, no boundary vectors and no draft."""

    def __init__(self, graph: Path, threads: int) -> None:
        self._session = open_session(graph, threads)
        self.shapes = tensor_shapes(self._session)
        none = np.empty((0, self.shapes["frames"][1]), np.float32)
        self.boundary_before: Float32 = none
        self.boundary_after: Float32 = none

    def project(self, states: Sequence[Float32]) -> list[ProjectorOutput]:
        return [ProjectorOutput(self._session.run(["frames"], {"states": each})[0]) for each in states]


class OnnxProjector:
    """Implements `models.protocols.Projector` by our own adapter, one utterance a run."""

    def __init__(
        self, graph: Path, embedding: npt.NDArray[Any] | None, boundary_before: Float32, boundary_after: Float32, threads: int
    ) -> None:
        """`embedding` is the LLM's table [vocabulary, embedding_size]; boundary vectors are [n, embedding_size].

        Without a table the frames are no input for an LLM: only their number and the draft mean something.
        """
        self._session = open_session(graph, threads)
        self.shapes = tensor_shapes(self._session)
        self._embedding = embedding
        self.boundary_before = boundary_before
        self.boundary_after = boundary_after

    def project(self, states: Sequence[Float32]) -> list[ProjectorOutput]:
        return [self._project_one(each) for each in states]

    def _project_one(self, states: Float32) -> ProjectorOutput:
        blank, kept, tokens, probabilities, residual = self._session.run(ADAPTER_OUTPUTS, {"states": states})
        embeddings = residual if self._embedding is None else frame_embeddings(self._embedding, tokens, probabilities, residual)
        return projector_output(blank, kept, tokens, probabilities, embeddings)


class OnnxDraftingProjector(OnnxFrameProjector):
    """The projector of a published model with a CTC head for the LLM's tokens: frames, and a draft with frames of its own."""

    def project(self, states: Sequence[Float32]) -> list[ProjectorOutput]:
        return [self._project_one(each) for each in states]

    def _project_one(self, states: Float32) -> ProjectorOutput:
        frames, blank, tokens, probabilities = self._session.run(DRAFTING_OUTPUTS, {"states": states})
        return ProjectorOutput(frames, read_draft(blank, tokens, probabilities))


class OnnxCtcHead:
    """Implements `models.protocols.Projector` where nothing stands behind it: frames without numbers, and the transcript."""

    boundary_before: Float32 = np.empty((0, 0), np.float32)
    boundary_after: Float32 = np.empty((0, 0), np.float32)

    def __init__(self, graph: Path, threads: int) -> None:
        self._session = open_session(graph, threads)
        self.shapes = tensor_shapes(self._session)

    def project(self, states: Sequence[Float32]) -> list[ProjectorOutput]:
        return [self._project_one(each) for each in states]

    def _project_one(self, states: Float32) -> ProjectorOutput:
        blank, tokens, probabilities = self._session.run(HEAD_OUTPUTS, {"states": states})
        return ProjectorOutput(np.empty((len(blank), 0), np.float32), read_draft(blank, tokens, probabilities))


def read_draft(blank: Float32, tokens: Int64, probabilities: Float32) -> CtcDraft:
    """Return the draft of blank [frames], tokens and probabilities [frames, K], best first; the blank wins if it is likelier."""
    spoken = probabilities[:, 0] > blank
    kept = np.flatnonzero(spoken).astype(np.int64)
    best = np.where(spoken, tokens[:, 0], NO_TOKEN).astype(np.int64)
    chosen = np.where(spoken, probabilities[:, 0], 0).astype(np.float32)
    given = (probabilities[kept] / np.maximum(1 - blank[kept], np.finfo(np.float32).tiny)[:, None]).astype(np.float32)
    return CtcDraft(best, chosen, blank, kept, tokens[kept], given)


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
