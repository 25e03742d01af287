"""The projector of a published model on ONNX Runtime: encoder states in, the LLM's input frames out, and no draft."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.protocols import Float32, ProjectorOutput
from models.runtimes.onnx.session import open_session, tensor_shapes


class OnnxFrameProjector:
    """Implements `models.protocols.Projector`, one utterance a run, without boundary vectors."""

    def __init__(self, graph: Path, threads: int) -> None:
        self._session = open_session(graph, threads)
        self.shapes = tensor_shapes(self._session)
        none = np.empty((0, self.shapes["frames"][1]), np.float32)
        self.boundary_before: Float32 = none
        self.boundary_after: Float32 = none

    def project(self, states: Sequence[Float32]) -> list[ProjectorOutput]:
        return [ProjectorOutput(self._session.run(["frames"], {"states": each})[0]) for each in states]
