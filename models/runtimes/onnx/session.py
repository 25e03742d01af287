"""ONNX Runtime sessions."""

from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from models.bundle.sections import Shapes
from models.protocols import BackendError
from models.runtimes.onnx.machine import adds_byte_products_exactly

CPU_PROVIDER = "CPUExecutionProvider"


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return options for `threads` threads; 0 means one per core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A thread that spins after a run takes a core from the next model's run: the chain then takes twice as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not adds_byte_products_exactly():
        # Weights of 8 bits become unsigned, whose products are slower and do not overflow.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def create_session(
    graph: Path, options: onnxruntime.SessionOptions, provider: str, provider_options: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    """Open a session of one provider. Raises `BackendError` if the graph cannot be loaded."""
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[(provider, dict(provider_options))], enable_fallback=False)
    except Exception as error:
        raise BackendError(f"{graph.name} could not be loaded: {error}") from error


def open_session(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open a CPU session. Raises `BackendError` if the graph cannot be loaded."""
    return create_session(graph, session_options(threads), CPU_PROVIDER, {})


def tensor_shapes(session: onnxruntime.InferenceSession) -> Shapes:
    """Return the shapes of the graph's inputs and outputs by name."""
    return {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
