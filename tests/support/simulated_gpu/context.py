"""TensorRT's execution context on a simulated GPU.

It refuses what TensorRT refuses, and what TensorRT leaves undefined: a graph whose context was changed, memory that is gone
or too small, two contexts in one workspace at a time.
"""

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

import torch

from models.runtimes.cuda.device import DeviceError
from models.runtimes.cuda.gpu import ALIGNMENT_BYTES
from tests.support.simulated_gpu.memory import Allocation, DeviceMemory
from tests.support.simulated_gpu.plan import Shape, SimulatedPlan
from tests.support.simulated_gpu.stream import CurrentDevice, SimulatedStream, Streams

POISON_BYTE = 0xFF
"""Four of them are NaN in float32."""


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Use:
    """The last use of a workspace: piece `position` of the work of a stream."""

    address: int
    size_bytes: int
    stream: int
    position: int

    def overlaps(self, other: "Use") -> bool:
        return self.address < other.address + other.size_bytes and other.address < self.address + self.size_bytes


@dataclass(frozen=True)
class Machine:
    """The parts of the simulated GPU that contexts use. `uses` belongs to the work that runs, one piece at a time."""

    memory: DeviceMemory
    streams: Streams
    current: CurrentDevice
    threads: int
    uses: list[Use] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """The bindings of one run, as of when it was enqueued. `revision` is the context's, where the run was captured."""

    shapes: Mapping[str, Shape]
    addresses: Mapping[str, int]
    allocations: frozenset[Allocation]
    workspace_address: int
    workspace_bytes: int
    revision: int | None


class Refused(Exception):
    """TensorRT would log this as an error, and do nothing."""


class IExecutionContext:
    def __init__(self, machine: Machine, logger: ILogger, plan: SimulatedPlan, *, engine: object, is_managed: bool) -> None:
        """Keeps the engine alive. Raises `OutOfDeviceMemoryError` where there is no room for a workspace of its own."""
        self.engine = engine
        self._machine = machine
        self._logger = logger
        self._plan = plan
        self._is_managed = is_managed
        self._profile = -1
        self._shapes = self._fixed_shapes()
        self._output_shapes: dict[str, Shape] | None = None
        """Inferred from `_shapes`, where that was done since they changed."""
        self._addresses: dict[str, int] = {}
        self._own_workspace: torch.Tensor | None = None
        self._workspace = (0, 0)
        if not is_managed:
            size = max(map(plan.activation_bytes, range(len(plan.profiles))))
            self._own_workspace = machine.memory.empty((size,), torch.uint8)
            self._workspace = (self._own_workspace.data_ptr(), size)
        self._revision = 0
        self._ran: tuple[int, dict[str, Shape]] | None = None

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """A change of the profile leaves the inputs without shapes."""
        try:
            self._stream(stream_handle)
        except (Refused, DeviceError) as refusal:
            return self._refuse(refusal)
        if not 0 <= profile_index < len(self._plan.profiles):
            return self._refuse(f"the plan has {len(self._plan.profiles)} profiles, and {profile_index} is none of them")
        if profile_index != self._profile:
            self._profile = profile_index
            self._shapes, self._output_shapes = self._fixed_shapes(), None
            self._revision += 1
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if name not in self._plan.inputs:
            return self._refuse(f"{name} is not an input")
        if self._profile < 0:
            return self._refuse(f"a profile has to be set before the shape of {name}")
        smallest, _, largest = self._plan.profile_shapes(name, self._profile)
        if len(shape) != len(smallest) or any(
            not low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
        ):
            return self._refuse(f"profile {self._profile} takes {name} from {smallest} to {largest}, not {tuple(shape)}")
        if self._shapes.get(name) != tuple(shape):
            self._shapes[name], self._output_shapes = tuple(shape), None
            self._revision += 1
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._plan.inputs and name not in self._plan.outputs:
            return self._refuse(f"{name} is neither an input nor an output")
        if self._addresses.get(name) != memory:
            self._addresses[name] = memory
            self._revision += 1
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        if not self._is_managed:
            self._refuse("only a context that is USER_MANAGED is given its memory")
        elif self._workspace != (memory, size):
            self._workspace = (memory, size)
            self._revision += 1

    def infer_shapes(self) -> list[str]:
        """The inputs without a shape. Raises `RuntimeError` where the shapes do not fit together."""
        missing = [name for name in self._plan.inputs if name not in self._shapes]
        if not missing:
            try:
                self._all_shapes()
            except Refused as refusal:
                raise RuntimeError(str(refusal)) from refusal
        return missing

    def get_tensor_shape(self, name: str) -> Shape:
        """With -1 for what is not known yet."""
        if name in self._plan.inputs:
            return self._shapes.get(name, self._plan.inputs[name].shape)
        return self._plan.outputs[name].shape if self.infer_shapes() else self._all_shapes()[name]

    def execute_async_v3(self, stream_handle: int) -> bool:
        try:
            stream = self._stream(stream_handle)
            step = self._step(stream)
        except (Refused, DeviceError) as refusal:
            return self._refuse(refusal)
        # Neither the queue nor a graph keeps a context alive on a GPU.
        stream.enqueue(partial(_run, weakref.ref(self), step, stream_handle))
        return True

    def _run(self, step: Step, stream_handle: int) -> None:
        """Do the work of the GPU. Raises `DeviceError`."""
        machine = self._machine
        if step.revision not in (None, self._revision):
            raise DeviceError("a graph was replayed whose context was bound anew after it was captured")
        if not all(map(machine.memory.is_live, step.allocations)):
            raise DeviceError("memory that a plan was bound to was given back before the plan ran")
        self._claim_workspace(step, stream_handle)
        ctypes.memset(step.workspace_address, POISON_BYTE, step.workspace_bytes)
        try:
            self._plan.run(step.shapes, step.addresses)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
            raise DeviceError(f"the plan failed: {error}") from error

    def _claim_workspace(self, step: Step, stream_handle: int) -> None:
        """Raises `DeviceError` where another stream may be using it: nothing makes that come before."""
        stream = self._machine.streams.get(stream_handle)
        use = Use(step.workspace_address, step.workspace_bytes, stream_handle, stream.doing)
        earlier = [each for each in self._machine.uses if each.overlaps(use)]
        self._machine.uses[:] = [each for each in self._machine.uses if each not in earlier] + [use]
        if any(each.position > stream.before.get(each.stream, 0) for each in earlier):
            raise DeviceError("two runs share device memory, and neither stream waits for the other")

    def _step(self, stream: SimulatedStream) -> Step:
        """Return the bindings of a run that begins now. Raises `Refused` where something is missing or wrong."""
        if self._profile < 0:
            raise Refused("no profile is set")
        if missing := [name for name in self._plan.inputs if name not in self._shapes]:
            raise Refused(f"no shape is set of {', '.join(missing)}")
        shapes = self._all_shapes()
        if missing := [name for name in shapes if not self._addresses.get(name)]:
            raise Refused(f"no address is set of {', '.join(missing)}")
        for output, source in self._plan.aliases.items():
            if self._addresses[output] != self._addresses[source]:
                raise Refused(f"{output} has to be bound to the address of {source}, which it is written into")
        tensors = {**self._plan.inputs, **self._plan.outputs}
        allocations = {self._find(name, self._addresses[name], each.bytes_of(shapes[name])) for name, each in tensors.items()}
        address, size = self._workspace
        needed = self._plan.activation_bytes(self._profile)
        if size < needed:
            raise Refused(f"profile {self._profile} needs {needed} bytes of device memory, and {size} are set")
        allocations.add(self._find("the device memory", address, size))
        now = self._profile, dict(self._shapes)
        if stream.is_capturing and self._ran != now:
            raise Refused("it has to run once with these shapes before it is captured")
        self._ran = now
        revision = self._revision if stream.is_capturing else None
        return Step(shapes, dict(self._addresses), frozenset(allocations), address, needed, revision)

    def _find(self, name: str, address: int, size_bytes: int) -> Allocation:
        if address % ALIGNMENT_BYTES:
            raise Refused(f"the address of {name} is no multiple of {ALIGNMENT_BYTES}")
        found = self._machine.memory.find(address)
        if found is None:
            raise Refused(f"the address of {name} is not in device memory that anybody holds")
        allocation, rest_bytes = found
        if rest_bytes < size_bytes:
            raise Refused(f"{name} takes {size_bytes} bytes, and {rest_bytes} are left at its address")
        return allocation

    def _all_shapes(self) -> dict[str, Shape]:
        """Of inputs, which all have one, and outputs."""
        if self._output_shapes is None:
            self._output_shapes = self._infer_outputs()
        return {**self._shapes, **self._output_shapes}

    def _infer_outputs(self) -> dict[str, Shape]:
        sizes: dict[str, int] = {}
        for name, shape in self._shapes.items():
            for dimension, size in zip(self._plan.inputs[name].dimensions, shape, strict=True):
                if isinstance(dimension, str) and sizes.setdefault(dimension, size) != size:
                    raise Refused(f"{dimension} is {sizes[dimension]} in one input and {size} in {name}")
        try:
            return self._plan.output_shapes(sizes)
        except ValueError as error:
            raise Refused(str(error)) from error

    def _fixed_shapes(self) -> dict[str, Shape]:
        return {name: each.shape for name, each in self._plan.inputs.items() if -1 not in each.shape}

    def _stream(self, handle: int) -> SimulatedStream:
        self._machine.current.require()
        return self._machine.streams.get(handle)

    def _refuse(self, problem: object) -> bool:
        self._logger.log(ILogger.Severity.ERROR, str(problem))
        return False


def _run(reference: weakref.ref[IExecutionContext], step: Step, stream_handle: int) -> None:
    context = reference()
    if context is None:
        raise DeviceError("an execution context was destroyed before its work was done")
    context._run(step, stream_handle)
