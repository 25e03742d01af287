"""ONNX Runtime on a GPU: a session that really runs there, or an error that says what is missing."""

from pathlib import Path
from typing import Literal, TypedDict

import onnxruntime

from models.runtimes.cuda.device import Device, DeviceError, Stream
from models.runtimes.onnx.session import create_session, session_options

CUDA_PROVIDER = "CUDAExecutionProvider"
HOW_TO_INSTALL = (
    "Install it with `pip install -e '.[gpu]'`, then `pip uninstall -y onnxruntime onnxruntime-gpu` and "
    "`pip install --no-deps -c constraints.txt onnxruntime-gpu`: the CPU's ONNX Runtime lies in the same folder."
)
WHAT_IT_NEEDS = "It needs NVIDIA's driver, CUDA 13 and cuDNN 9, which come with torch for CUDA."
HOST_OPERATORS = frozenset({"Shape", "Gather"})
"""Nodes that may run on the CPU beside a GPU: ONNX Runtime takes a length out of a tensor's shape there."""


class CudaOptions(TypedDict):
    """Options of the CUDA provider with the values that they take. ONNX Runtime takes any, where CUDA is not there."""

    device_id: str
    user_compute_stream: str
    arena_extend_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"]
    cudnn_conv_algo_search: Literal["EXHAUSTIVE", "HEURISTIC", "DEFAULT"]
    use_tf32: Literal["0", "1"]


def cuda_options(device: Device, stream: Stream) -> CudaOptions:
    return {
        "device_id": str(device.binding_device[1]),
        "user_compute_stream": str(stream.handle),
        # Memory that the arena doubles beyond its need would be missing for the LLM's slots.
        "arena_extend_strategy": "kSameAsRequested",
        # An exhaustive search times every algorithm again for each new length of audio.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "1",
    }


def open_device_session(graph: Path, device: Device, stream: Stream, threads: int) -> onnxruntime.InferenceSession:
    """Open a session whose work goes to the stream. Raises `DeviceError` where any of it would run elsewhere than on the device,
    `BackendError` where the graph cannot be loaded.
    """
    provider = device.execution_provider
    if provider not in onnxruntime.get_available_providers():
        raise DeviceError(f"This ONNX Runtime has no {provider}. {HOW_TO_INSTALL}")
    options = session_options(threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    provider_options = dict(cuda_options(device, stream)) if provider == CUDA_PROVIDER else {}
    with device.current():
        session = create_session(graph, options, provider, {name: str(value) for name, value in provider_options.items()})
    require_provider(session, provider, graph.name)
    return session


def require_provider(session: onnxruntime.InferenceSession, provider: str, graph: str) -> None:
    """Raises `DeviceError` where the session, or a node of its graph, fell back to another provider: ONNX Runtime logs that only.

    The session has to have been opened with `session.record_ep_graph_assignment_info`.
    """
    in_use = session.get_providers()
    if in_use[0] != provider:
        raise DeviceError(f"ONNX Runtime runs {graph} by {in_use[0]}, not by {provider}. {WHAT_IT_NEEDS} {HOW_TO_INSTALL}")
    elsewhere = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    }
    if stray := sorted(elsewhere - HOST_OPERATORS):
        raise DeviceError(
            f"{provider} of ONNX Runtime {onnxruntime.__version__} does not take all of {graph}: it would leave "
            f"{', '.join(stray)} to the CPU. Use a newer onnxruntime-gpu, or run the encoder by TensorRT."
        )
