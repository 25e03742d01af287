"""A TensorRT plan in a GPU's memory, and contexts that run it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.bundle.plans import PlanError
from models.runtimes.cuda.device import Device, DeviceError, Stream
from models.runtimes.cuda.gpu import ALIGNMENT_BYTES

DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
"""TensorRT's names of types."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorDescription:
    """An input or output of a plan. Free dimensions of `shape` are -1; `smallest` and `largest` are the shapes of an input by
    optimisation profile."""

    dtype: torch.dtype
    shape: Shape
    smallest: tuple[Shape, ...] = ()
    largest: tuple[Shape, ...] = ()


class Plan:
    """`inputs` and `outputs` by name. Its weights are on the GPU as long as it or one of its contexts lives."""

    def __init__(self, device: Device, content: bytes, name: str) -> None:
        """Raises `PlanError` where the library does not take the plan."""
        self.device = device
        self.name = name
        library = device.tensorrt
        library.messages.lines.clear()
        with device.current():
            # The engine does not keep its runtime alive.
            self._runtime = library.module.Runtime(library.logger)
            self.engine = self._runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            reason = library.messages.errors() or "it did not say why"
            raise PlanError(f"{library.builder} {library.version} does not take the plan {name}: {reason}")
        self.profiles: int = self.engine.num_optimization_profiles
        self.workspace_bytes: int = self.engine.device_memory_size_v2
        self.inputs: dict[str, TensorDescription] = {}
        self.outputs: dict[str, TensorDescription] = {}
        for index in range(self.engine.num_io_tensors):
            tensor = self.engine.get_tensor_name(index)
            if self.engine.get_tensor_mode(tensor).name == "INPUT":
                self.inputs[tensor] = self._describe(tensor, self.profiles)
            else:
                self.outputs[tensor] = self._describe(tensor, 0)

    def require(self, inputs: set[str], outputs: set[str], profiles: int) -> None:
        """Raises `PlanError` where the plan has other inputs or profiles than these, or lacks one of the outputs."""
        if self.inputs.keys() != inputs or not outputs <= self.outputs.keys() or self.profiles != profiles:
            raise PlanError(
                f"The plan {self.name} is not one that this release runs: it has {self.profiles} profiles, the inputs "
                f"{', '.join(self.inputs)} and the outputs {', '.join(self.outputs)}. Build it again with "
                "`python -m export.tensorrt_plans`."
            )

    def workspace(self) -> Tensor:
        """Memory for what contexts keep between kernels: for as many as run one after the other, on one stream."""
        return self.device.empty((max(self.workspace_bytes, ALIGNMENT_BYTES),), torch.uint8)

    def _describe(self, tensor: str, profiles: int) -> TensorDescription:
        dtype = self.engine.get_tensor_dtype(tensor).name
        if dtype not in DTYPES:
            raise PlanError(f"The plan {self.name} has {tensor} as {dtype}, which this release does not know.")
        if self.engine.get_tensor_location(tensor).name != "DEVICE":
            raise PlanError(f"The plan {self.name} has {tensor} on the host: its graph computes shapes from it.")
        ranges = [self.engine.get_tensor_profile_shape(tensor, profile) for profile in range(profiles)]
        return TensorDescription(
            DTYPES[dtype],
            tuple(self.engine.get_tensor_shape(tensor)),
            smallest=tuple(tuple(smallest) for smallest, _, _ in ranges),
            largest=tuple(tuple(largest) for _, _, largest in ranges),
        )


class PlanContext:
    """Runs a plan under one of its profiles, on one stream.

    A context from which a graph was captured is not bound again: TensorRT leaves undefined what its graph would do then.
    """

    def __init__(self, plan: Plan, profile: int, stream: Stream, workspace: Tensor) -> None:
        self._plan = plan
        self._stream = stream
        self._device = plan.device
        self._messages = plan.device.tensorrt.messages
        self._bound: dict[str, Tensor] = {}
        strategy = plan.device.tensorrt.module.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._device.current():
            self._context = plan.engine.create_execution_context(strategy)
            if self._context is None:
                raise self._error("could not make a context")
            self._workspace = workspace
            self._context.set_device_memory(workspace.data_ptr(), workspace.nbytes)
            if not self._context.set_optimization_profile_async(profile, stream.handle):
                raise self._error(f"does not take profile {profile}")
        stream.synchronize()

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the memory that the next runs read and write, by name: aligned, contiguous device memory, which is kept alive.

        Raises `DeviceError` where the plan does not take it.
        """
        for name, tensor in tensors.items():
            description = self._plan.inputs.get(name) or self._plan.outputs[name]
            if tensor.dtype != description.dtype or not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT_BYTES:
                raise DeviceError(f"{name} has to be contiguous and aligned {description.dtype}, not {tensor.dtype}")
            if name in self._plan.inputs and not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise self._error(f"does not take {name} of {tuple(tensor.shape)}")
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                raise self._error(f"does not take the memory of {name}")
            self._bound[name] = tensor
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise self._error("does not take these shapes") from error
        if missing:
            raise self._error(f"still needs {', '.join(missing)}")
        for name in self._plan.outputs:
            if name in self._bound and tuple(self._context.get_tensor_shape(name)) != tuple(self._bound[name].shape):
                shapes = tuple(self._context.get_tensor_shape(name)), tuple(self._bound[name].shape)
                raise DeviceError(f"The plan {self._plan.name} gives {name} as {shapes[0]}, not {shapes[1]}")

    def enqueue(self) -> None:
        """Put one run on the stream, or into the graph that is being captured from it. Raises `DeviceError`."""
        self._messages.lines.clear()
        with self._device.current():
            if not self._context.execute_async_v3(self._stream.handle):
                raise self._error("could not be run")

    def _error(self, problem: str) -> DeviceError:
        reason = self._messages.errors() or "TensorRT did not say why"
        return DeviceError(f"The plan {self._plan.name} {problem}: {reason}")
