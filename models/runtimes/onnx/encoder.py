"""The speech encoder on ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path

from models.protocols import Float32
from models.runtimes.onnx.session import open_session, tensor_shapes


class OnnxEncoder:
    """Implements `models.protocols.Encoder`: one utterance a run, so that no answer depends on its neighbours."""

    def __init__(self, graph: Path, threads: int) -> None:
        self._session = open_session(graph, threads)
        self.shapes = tensor_shapes(self._session)

    def encode(self, features: Sequence[Float32]) -> list[Float32]:
        return [self._session.run(["states"], {"features": each})[0] for each in features]
