"""A GPU acted on a CPU, so strictly that runtimes which work on it have little left to get wrong on a real one.

Work is done when a caller waits for it and not before. Memory is bounded, aligned and poisoned. Plans are those of the builder
`simulated`. It does not show rounding in 16 bits, and time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import reference
from kernels.adapter.forward import Operators
from models.runtimes.cuda.device import DeviceError, DeviceLostError, Result, Stream
from models.runtimes.cuda.gpu import Gpu
from models.runtimes.cuda.tensorrt_library import Messages, TensorRT, make_logger
from tests.support.simulated_gpu.context import Machine
from tests.support.simulated_gpu.memory import DeviceMemory, poison
from tests.support.simulated_gpu.plan import ARCHITECTURE
from tests.support.simulated_gpu.stream import CurrentDevice, SimulatedGraph, SimulatedStream, Streams
from tests.support.simulated_gpu.tensorrt import tensorrt_module


class SimulatedDevice:
    """Implements `models.runtimes.cuda.device.Device`. `threads` is what ONNX Runtime computes each plan with."""

    operators: Operators = reference
    float_type = torch.float32
    execution_provider = "CPUExecutionProvider"
    binding_device = ("cpu", 0)

    def __init__(self, memory_bytes: int = 8 * 2**30, ordinal: int = 0, threads: int = 2) -> None:
        name = f"simulated GPU {ordinal}"
        self.gpu = Gpu("simulated GPU", ARCHITECTURE, memory_bytes)
        self._memory = DeviceMemory(memory_bytes, name)
        self._streams = Streams(self._memory)
        self._current = CurrentDevice(name)
        module = tensorrt_module(Machine(self._memory, self._streams, self._current, threads))
        messages = Messages()
        self.tensorrt = TensorRT("tensorrt", module, messages, make_logger(module, messages))

    @contextmanager
    def current(self) -> Iterator[None]:
        self._current.depth += 1
        try:
            yield
        finally:
            self._current.depth -= 1

    def lose(self, reason: str) -> None:
        """From now on all work fails, as after an error that CUDA does not forget."""
        self._streams.lost = reason

    def check(self) -> None:
        if self._streams.lost:
            raise DeviceLostError(f"the {self.gpu.name} was lost to this process: {self._streams.lost}")

    def free_memory_bytes(self) -> int:
        return self._memory.free_bytes()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self._memory.empty(shape, dtype)

    def staging(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(tuple(shape), dtype=dtype)
        poison(tensor)
        return tensor

    def stream(self) -> SimulatedStream:
        return self._streams.create()

    def launch(self, work: Callable[[], None], stream: Stream) -> None:
        self._ours(stream).enqueue(work)

    def capture(self, work: Callable[[], Result], stream: Stream) -> tuple[Result, SimulatedGraph]:
        """Record the work that is launched.

        Operations that torch runs in `work` by itself cannot be recorded. If there are only such, a replay calls `work` again and
        copies its results to the first ones. Raises `DeviceError` for a mixture of both.
        """
        capturing = self._ours(stream)
        capturing.begin_capture()
        try:
            with self.current(), OperatorNames() as computed:
                results = work()
        finally:
            recorded = capturing.end_capture()
        if not recorded:
            for each in results:
                poison(each)
            recorded = [partial(_repeat, work, results)]
        elif computed.names:
            raise DeviceError(f"all that is captured has to be launched, or nothing: {', '.join(computed.names)} would not be")
        return results, SimulatedGraph(capturing, recorded)

    def _ours(self, stream: Stream) -> SimulatedStream:
        return self._streams.get(stream.handle)


class OperatorNames(TorchDispatchMode):
    """The operators that torch runs within it, but for those that only look at memory or ask for some."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func is not torch.ops.aten.empty.memory_format:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _repeat(work: Callable[[], Sequence[Tensor]], results: Sequence[Tensor]) -> None:
    for target, result in zip(results, work(), strict=True):
        target.copy_(result)
