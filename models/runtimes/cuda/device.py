"""The interface of a GPU to the runtimes: memory, streams and graphs.

`models.runtimes.cuda.torch_device` implements it with torch. Tests implement it on a CPU, and run the same runtimes on that.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from kernels.adapter.forward import Operators
from models.bundle.plans import PlanKey
from models.protocols import BackendError, BackendLostError
from models.runtimes.cuda.gpu import Gpu
from models.runtimes.cuda.tensorrt_library import TensorRT

Result = TypeVar("Result", bound=Sequence[Tensor])


class DeviceError(BackendError):
    """The GPU, or a library on it, failed."""


class OutOfDeviceMemoryError(DeviceError):
    """The GPU's memory does not hold it. The message says how much was asked for and how much is free."""


class DeviceLostError(DeviceError, BackendLostError):
    """An error that stays: after some of its errors CUDA refuses all further work of a process."""


class Stream(Protocol):
    """A queue of work: what is enqueued on one is done in that order, whenever the GPU comes to it."""

    @property
    def handle(self) -> int:
        """The `cudaStream_t`, for libraries that enqueue by themselves."""
        ...

    def synchronize(self) -> None:
        """Block until all that was enqueued is done. Raises `DeviceError` where some of it failed."""
        ...

    def wait_for(self, other: "Stream") -> None:
        """Let work that is enqueued here from now on start after all that is enqueued on `other` by now."""
        ...


class Graph(Protocol):
    """Captured work on captured memory."""

    def replay(self) -> None:
        """Enqueue it again, on the stream that it was captured on."""
        ...


class Device(Protocol):
    """One GPU. Methods that fail raise `DeviceError`. Several threads may use it, as long as each has streams of its own."""

    gpu: Gpu
    tensorrt: TensorRT
    """The library that runs its plans."""
    operators: Operators
    """The adapter's kernels, which compute in `float_type`."""
    float_type: torch.dtype
    execution_provider: str
    """ONNX Runtime's name of it, and `binding_device` how its memory is named to ONNX Runtime: (type, number)."""
    binding_device: tuple[str, int]

    def current(self) -> AbstractContextManager[None]:
        """Within it, what this thread asks of CUDA goes to this GPU."""
        ...

    def check(self) -> None:
        """Raises `DeviceLostError` where the GPU will do nothing any more for this process. Waits for all that was enqueued."""
        ...

    def free_memory_bytes(self) -> int: ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Device memory, contiguous and aligned, with anything in it. Raises `OutOfDeviceMemoryError`."""
        ...

    def staging(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Pinned host memory, from and to which copies do not hold up the host."""
        ...

    def stream(self) -> Stream: ...

    def launch(self, work: Callable[[], None], stream: Stream) -> None:
        """Enqueue what torch, or ONNX Runtime on this stream, does in `work`, with memory that is there already.

        Neither staging memory that it reads nor what it writes may be touched by the host before the stream was synchronised.
        """
        ...

    def capture(self, work: Callable[[], Result], stream: Stream) -> tuple[Result, Graph]:
        """Make a graph of what `work` enqueues on the stream. It has to have run once before, and may not synchronise.

        The tensors that it returns keep their memory, and each replay writes them anew. Nothing is run yet.
        """
        ...


def copy(device: Device, target: Tensor, source: Tensor, stream: Stream) -> None:
    """Enqueue a copy between memory of the device, staging memory, or both."""

    def work() -> None:
        target.copy_(source, non_blocking=True)

    device.launch(work, stream)


def upload(device: Device, tensor: Tensor, stream: Stream) -> Tensor:
    """Return a copy of a tensor of the host in the device's memory, once it is there."""
    staged, target = device.staging(tensor.shape, tensor.dtype), device.empty(tensor.shape, tensor.dtype)
    staged.copy_(tensor)
    copy(device, target, staged, stream)
    stream.synchronize()
    return target


def capture_launched(device: Device, work: Callable[[], Result], stream: Stream) -> tuple[Result, Graph]:
    """Return a graph of what torch does in `work`. A first run compiles and loads kernels, which no graph may hold."""

    def run() -> None:
        work()

    device.launch(run, stream)
    stream.synchronize()
    return device.capture(work, stream)


def plan_key(device: Device) -> PlanKey:
    """Which plans it can run."""
    return PlanKey(device.tensorrt.builder, device.tensorrt.version, device.gpu.architecture)
