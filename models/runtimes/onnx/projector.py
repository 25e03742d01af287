"""The adapter on ONNX Runtime: encoder states in, CTC draft and the LLM's input frames out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from models.ctc import adapter_output, frame_embeddings
from models.protocols import AdapterOutput, Float32
from models.runtimes.onnx.session import open_session, tensor_shapes

OUTPUTS = ["blank_probability", "kept", "top_tokens", "top_probabilities", "residual"]


class OnnxAdapter:
    """The `Adapter` protocol."""

    def __init__(
        self, graph: Path, embedding: npt.NDArray[Any], boundary_before: Float32, boundary_after: Float32, threads: int
    ) -> None:
        """`embedding` is the LLM's table [vocabulary, embedding_size]; boundary vectors are [n, embedding_size]."""
        self._session = open_session(graph, threads)
        self.shapes = tensor_shapes(self._session)
        self._embedding = embedding
        self.boundary_before = boundary_before
        self.boundary_after = boundary_after

    def adapt(self, states: Sequence[Float32]) -> list[AdapterOutput]:
        return [self._adapt_one(each) for each in states]

    def _adapt_one(self, states: Float32) -> AdapterOutput:
        blank, kept, tokens, probabilities, residual = self._session.run(OUTPUTS, {"states": states})
        embeddings = frame_embeddings(self._embedding, tokens, probabilities, residual)
        return adapter_output(blank, kept, tokens, probabilities, embeddings)
