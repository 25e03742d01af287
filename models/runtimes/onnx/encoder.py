"""The speech encoder on ONNX Runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime

from models.protocols import BackendError, Float32

CPU_PROVIDER = "CPUExecutionProvider"


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """0 threads means one per core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that go on spinning after a run take a core from the next model's run: the chain then takes twice as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without VNNI, products of unsigned and signed 8-bit integers saturate: on such CPUs both become unsigned, which is exact.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def create_session(
    graph: Path, options: onnxruntime.SessionOptions, provider: str, provider_options: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    """A session of one provider. Raises `BackendError` where the graph cannot be loaded."""
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[(provider, dict(provider_options))], enable_fallback=False)
    except Exception as error:
        raise BackendError(f"{graph.name} could not be loaded: {error}") from error


def open_session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    """A CPU session. Raises `BackendError` where the graph cannot be loaded."""
    return create_session(graph, session_options(threads), CPU_PROVIDER, {})


class OnnxEncoder:
    """The `Encoder` protocol: one utterance a run, so that no answer depends on its neighbours."""

    def __init__(self, graph: Path, threads: int) -> None:
        self._session = open_session(graph, threads)

    def encode(self, features: Sequence[Float32]) -> list[Float32]:
        return [self._session.run(["states"], {"features": each})[0] for each in features]
