"""A GPU through torch and TensorRT. Written without one, and not run on one yet."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.adapter.forward import Operators
from models.protocols import BackendError
from models.runtimes.cuda.device import DeviceError, DeviceLostError, OutOfDeviceMemoryError, Result, Stream
from models.runtimes.cuda.gpu import find_gpu
from models.runtimes.cuda.tensorrt_library import Builder, load_tensorrt

CAPTURE_ERROR_MODE = "thread_local"
"""Other threads go on launching while one captures, and may allocate: under torch's own choice, `global`, either would fail."""


class TorchStream:
    """A CUDA stream."""

    def __init__(self, ordinal: int) -> None:
        with translated_errors():
            self.cuda = torch.cuda.Stream(device=ordinal)

    @property
    def handle(self) -> int:
        return int(self.cuda.cuda_stream)

    def synchronize(self) -> None:
        with translated_errors():
            self.cuda.synchronize()

    def wait_for(self, other: Stream) -> None:
        with translated_errors():
            self.cuda.wait_stream(_ours(other).cuda)


@dataclass(frozen=True)
class TorchGraph:
    """A CUDA graph, whose memory is its own. It keeps what its work refers to, which CUDA would not."""

    graph: torch.cuda.CUDAGraph
    stream: TorchStream
    work: Callable[[], Sequence[Tensor]]

    def replay(self) -> None:
        with translated_errors(), torch.cuda.stream(self.stream.cuda):
            self.graph.replay()


class TorchDevice:
    """Implements `models.runtimes.cuda.device.Device`."""

    float_type = torch.bfloat16
    execution_provider = "CUDAExecutionProvider"

    def __init__(self, ordinal: int = 0, builder: Builder = "tensorrt") -> None:
        """Raises `DeviceError` where there is no such GPU, or torch cannot use it, and `TensorRTError` without TensorRT."""
        require_cuda(ordinal)
        self.gpu = find_gpu(ordinal)
        self.tensorrt = load_tensorrt(builder)
        self.operators: Operators = load_operators()
        self.binding_device = ("cuda", ordinal)
        self._ordinal = ordinal
        # torch allows one capture at a time in a process.
        self._capturing = threading.Lock()

    @contextmanager
    def current(self) -> Iterator[None]:
        with torch.cuda.device(self._ordinal):
            yield

    def check(self) -> None:
        try:
            torch.cuda.synchronize(self._ordinal)
        except RuntimeError as error:
            raise DeviceLostError(f"GPU {self._ordinal} was lost to this process: {error}") from error

    def free_memory_bytes(self) -> int:
        """Memory that torch keeps for its next tensors does not count as free."""
        with translated_errors():
            free, _ = torch.cuda.mem_get_info(self._ordinal)
        return int(free)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        with translated_errors(f"{size / 1e6:.1f} MB asked for"):
            return torch.empty(tuple(shape), dtype=dtype, device=torch.device("cuda", self._ordinal))

    def staging(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        with translated_errors():
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def stream(self) -> TorchStream:
        return TorchStream(self._ordinal)

    def launch(self, work: Callable[[], None], stream: Stream) -> None:
        with translated_errors(), self.current(), torch.cuda.stream(_ours(stream).cuda):
            work()

    def capture(self, work: Callable[[], Result], stream: Stream) -> tuple[Result, TorchGraph]:
        ours = _ours(stream)
        # The stream is made the current one here already: a capture that fails at its end leaves it so.
        with translated_errors(), self._capturing, self.current(), torch.cuda.stream(ours.cuda):
            graph = torch.cuda.CUDAGraph()
            capturing = torch.cuda.graph(graph, stream=ours.cuda, capture_error_mode=CAPTURE_ERROR_MODE)
            with capturing:
                results = work()
        return results, TorchGraph(graph, ours, work)


def require_cuda(ordinal: int) -> None:
    """Raises `DeviceError`, which says what to do, where torch cannot use the GPU of that number."""
    try:
        find_gpu()
    except BackendError as error:
        raise DeviceError(
            f"{error}: install NVIDIA's driver for CUDA 13, start a container with access to the GPU, or set the device to cpu"
        ) from error
    if not torch.backends.cuda.is_built():
        raise DeviceError(
            f"torch {torch.__version__} is a build for CPUs: take the one for CUDA, by `pip install --force-reinstall "
            f"torch=={torch.__version__.partition('+')[0]}` without an extra index"
        )
    count = torch.cuda.device_count()
    if not count:
        raise DeviceError(
            f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU, though there is a driver: it may be too old "
            "for that CUDA, or CUDA_VISIBLE_DEVICES may hide the GPU"
        )
    if not 0 <= ordinal < count:
        raise DeviceError(f"there is no GPU {ordinal}: this machine has {count}, which are numbered from 0")


def load_operators() -> Operators:
    """Return the Triton kernels. Raises `DeviceError` without Triton."""
    try:
        from kernels import triton as triton_operators
    except ImportError as error:
        raise DeviceError(f"the kernels cannot be imported ({error}): pip install -e '.[gpu]'") from error
    return triton_operators


@contextmanager
def translated_errors(asked_for: str = "") -> Iterator[None]:
    """torch's errors as `DeviceError`, those of memory as `OutOfDeviceMemoryError`, which says what was asked for."""
    try:
        yield
    except BackendError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        # torch's own text says how much was asked for, and is free.
        raise OutOfDeviceMemoryError(": ".join(filter(None, (asked_for, str(error))))) from error
    except RuntimeError as error:
        raise DeviceError(f"work on the GPU failed: {error}") from error


def _ours(stream: Stream) -> TorchStream:
    if not isinstance(stream, TorchStream):
        raise TypeError("a GPU's work goes on a stream of that GPU")
    return stream
