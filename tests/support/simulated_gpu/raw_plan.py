"""TensorRT's own calls, on a simulated GPU, around the plan of a tiny llama or another."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from export.tensorrt_build import BuiltPlan, Profile
from export.tensorrt_parts import Part, llm_part
from export.tensorrt_profiles import Limits
from models.graph.writer import GraphBuilder
from tests.support.simulated_gpu.builder import build_simulated_part
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.simulated_gpu.stream import SimulatedStream
from tests.support.tiny.tiny_llama import MAX_POSITIONS, tiny_llama

Arrays = Mapping[str, npt.NDArray[Any]]

LIMITS = Limits(decode_rows=4, prefill_rows=4, prefill_tokens=16, wanted=16)
PAIRS = [f"{kind}_{layer}" for layer in range(2) for kind in ("key", "value")]
SLOT_SHAPE = (2, MAX_POSITIONS, 16)


def build(part: Part, folder: Path) -> BuiltPlan:
    return build_simulated_part(part, folder)


def graph_part(write: Callable[[], GraphBuilder], profiles: Sequence[Profile]) -> Part:
    return Part("graph", "fp32", 0, profiles, write)


def tiny_llm_part() -> Part:
    return llm_part(lambda: tiny_llama()[0], "fp32", MAX_POSITIONS, LIMITS)


class RawPlan:
    """An engine and what it is bound to."""

    def __init__(self, device: SimulatedDevice, content: bytes) -> None:
        self.device = device
        self.trt = device.tensorrt.module
        with device.current():
            self.runtime = self.trt.Runtime(device.tensorrt.logger)
            self.engine = self.runtime.deserialize_cuda_engine(content)
        assert self.engine, device.tensorrt.messages.errors()
        self.names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self.workspace = device.empty((self.engine.device_memory_size_v2,), torch.uint8)

    def is_input(self, name: str) -> bool:
        return bool(self.engine.get_tensor_mode(name) is self.trt.TensorIOMode.INPUT)

    def context(self, profile: int, stream: SimulatedStream) -> Any:
        """A context in the common workspace."""
        with self.device.current():
            context = self.engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            context.set_device_memory(self.workspace.data_ptr(), self.workspace.nbytes)
            assert context.set_optimization_profile_async(profile, stream.handle)
        return context

    def bind(self, context: Any, inputs: Arrays, memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy the inputs to memory of their own, and bind all that the plan has; `memory` is bound as it is."""
        bound = dict(memory)
        for name in filter(self.is_input, self.names):
            if name not in memory:
                bound[name] = self.device.empty(inputs[name].shape, torch.from_numpy(inputs[name]).dtype)
                bound[name].numpy()[...] = inputs[name]
            assert context.set_input_shape(name, tuple(bound[name].shape))
        assert context.infer_shapes() == []
        for name in self.names:
            if self.engine.get_aliased_input_tensor(name):
                bound[name] = bound[self.engine.get_aliased_input_tensor(name)]
            elif name not in bound:
                dtype = {"FLOAT": torch.float32, "INT64": torch.int64}[self.engine.get_tensor_dtype(name).name]
                bound[name] = self.device.empty(context.get_tensor_shape(name), dtype)
            assert context.set_tensor_address(name, bound[name].data_ptr())
        return bound

    def enqueue(self, context: Any, stream: SimulatedStream) -> bool:
        self.device.tensorrt.messages.lines.clear()
        with self.device.current():
            return bool(context.execute_async_v3(stream.handle))

    def errors(self) -> str:
        return self.device.tensorrt.messages.errors()


def step_inputs(embeddings: npt.NDArray[np.float32], write_index: list[int], wanted: list[tuple[int, int]]) -> Arrays:
    """Of the tiny llama, but for its slots: embeddings [rows, tokens, D]."""
    tokens = embeddings.shape[1]
    first = np.array(write_index, np.int64)
    return {
        "embeddings": embeddings,
        "positions": first[:, None] + np.arange(tokens),
        "write_index": first,
        "kv_length": first + tokens,
        "wanted": np.array(wanted, np.int64),
    }
