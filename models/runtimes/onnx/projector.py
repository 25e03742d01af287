"""The adapter on ONNX Runtime: encoder states in, CTC draft and the LLM's input frames out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from models.ctc import frame_embeddings, projector_output
from models.protocols import Float32, ProjectorOutput
from models.runtimes.onnx.session import open_session, tensor_shapes

OUTPUTS = ["blank_probability", "kept", "top_tokens", "top_probabilities", "residual"]


class OnnxProjector:
    """The `Adapter` protocol."""

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
        blank, kept, tokens, probabilities, residual = self._session.run(OUTPUTS, {"states": states})
        embeddings = residual if self._embedding is None else frame_embeddings(self._embedding, tokens, probabilities, residual)
        return projector_output(blank, kept, tokens, probabilities, embeddings)
