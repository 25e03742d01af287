"""The speech encoder on ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from models.protocols import EncodingInterrupted, Float32
from models.runtimes.onnx.session import open_session, tensor_shapes


class OnnxEncoder:
    """Implements `models.protocols.Encoder`: one utterance a run, so that no answer depends on its neighbours."""

    def __init__(self, graph: Path, threads: int) -> None:
        self._session = open_session(graph, threads)
        self.shapes = tensor_shapes(self._session)
        self._run_options = onnxruntime.RunOptions()

    def encode(self, features: Sequence[Float32]) -> list[Float32]:
        """Return the states of each utterance. Raises `EncodingInterrupted`."""
        self._run_options = options = onnxruntime.RunOptions()
        try:
            return [self._session.run(["states"], {"features": each}, options)[0] for each in features]
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
            if options.terminate:
                raise EncodingInterrupted("The encoder was interrupted.") from error
            raise

    def interrupt(self) -> None:
        """Have the `encode` that runs in another thread raise `EncodingInterrupted`, a few milliseconds later."""
        self._run_options.terminate = True
