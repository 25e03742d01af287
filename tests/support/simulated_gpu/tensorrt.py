"""TensorRT's runtime on a simulated GPU, with the names of TensorRT's classes, methods and enumerations."""

import weakref
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import Any

from models.runtimes.cuda.device import DeviceError
from tests.support.simulated_gpu.context import IExecutionContext, ILogger, Machine
from tests.support.simulated_gpu.plan import FORMAT_VERSION, PlanFormatError, Shape, SimulatedPlan


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


DATA_TYPES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "int8": DataType.INT8,
    "int32": DataType.INT32,
    "bool": DataType.BOOL,
    "uint8": DataType.UINT8,
    "int64": DataType.INT64,
}


class Runtime:
    def __init__(self, machine: Machine, logger: ILogger) -> None:
        self._machine = machine
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        try:
            self._machine.current.require()
            weights = self._machine.memory.reserve(len(serialized_engine))
            plan = SimulatedPlan(bytes(serialized_engine), self._machine.threads)
        except (DeviceError, PlanFormatError) as error:
            self._logger.log(ILogger.Severity.ERROR, f"the plan is not taken: {error}")
            return None
        return ICudaEngine(self._machine, self._logger, plan, weights, weakref.ref(self))


class ICudaEngine:
    def __init__(
        self, machine: Machine, logger: ILogger, plan: SimulatedPlan, weights: object, runtime: weakref.ref[Runtime]
    ) -> None:
        """`weights` are kept, and the runtime is not."""
        self._machine = machine
        self._logger = logger
        self._plan = plan
        self._tensors = {**plan.inputs, **plan.outputs}
        self._weights = weights
        self._runtime = runtime

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._plan.profiles)

    @property
    def device_memory_size_v2(self) -> int:
        return max(map(self._plan.activation_bytes, range(len(self._plan.profiles))))

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._plan.activation_bytes(profile_index)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if name not in self._tensors:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if name in self._plan.inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        if name not in self._tensors:
            raise KeyError(name)
        return TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> DataType:
        return DATA_TYPES[self._tensors[name].dtype.name]

    def get_tensor_shape(self, name: str) -> Shape:
        return self._tensors[name].shape

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        return self._plan.profile_shapes(name, profile_index)

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._plan.aliases.get(name)

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> "IExecutionContext | None":
        managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        try:
            self._machine.current.require()
            if self._runtime() is None:
                raise DeviceError("the engine's runtime was destroyed")
            return IExecutionContext(self._machine, self._logger, self._plan, engine=self, is_managed=managed)
        except DeviceError as error:
            self._logger.log(ILogger.Severity.ERROR, f"no context is made: {error}")
            return None


def tensorrt_module(machine: Machine) -> Any:
    """Return what `import tensorrt` gives on a machine with this GPU, as far as runtimes use it."""
    return SimpleNamespace(
        __version__=FORMAT_VERSION,
        ILogger=ILogger,
        Runtime=partial(Runtime, machine),
        TensorIOMode=TensorIOMode,
        TensorLocation=TensorLocation,
        DataType=DataType,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
    )
