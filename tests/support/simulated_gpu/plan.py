"""A plan for a simulated GPU: one ONNX file in float32 with its weights inside, which ONNX Runtime runs on a CPU.

The metadata of the file holds what a TensorRT plan knows besides; `tests.support.simulated_gpu.builder` writes it:
`format_version`, `profiles` as in `models.bundle.sections.PlanSection`, and `aliases`, which names for each output the input that
it is written into.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from models.runtimes.onnx.session import CPU_PROVIDER, session_options

FORMAT_VERSION = "simulated-1"
ARCHITECTURE = "sm_00"
"""The architecture that such plans are for."""

LARGE_BYTES = 1024
"""Of weights as small as this the values are read too: shapes depend on some."""

Shape = tuple[int, ...]


class PlanFormatError(ValueError):
    """The content is no plan of this format."""


@dataclass(frozen=True)
class PlanTensor:
    """An input or output. `dimensions` are sizes, and names where they are free."""

    name: str
    dtype: np.dtype[Any]
    dimensions: tuple[int | str, ...]

    @property
    def shape(self) -> Shape:
        """With -1 where a size is free."""
        return tuple(each if isinstance(each, int) else -1 for each in self.dimensions)

    def bytes_of(self, shape: Shape) -> int:
        return math.prod(shape) * self.dtype.itemsize

    def at(self, sizes: Mapping[str, int]) -> Shape:
        """Return the shape with these sizes for the names. Raises `KeyError` for any other."""
        return tuple(each if isinstance(each, int) else sizes[each] for each in self.dimensions)


class SimulatedPlan:
    """Loaded, with its weights. Its methods may be called by several threads."""

    def __init__(self, content: bytes, threads: int) -> None:
        """Raises `PlanFormatError`."""
        try:
            self._graph = _without_weights(onnx.load_model_from_string(content))
            session = onnxruntime.InferenceSession(content, session_options(threads), providers=[CPU_PROVIDER])
        except Exception as error:  # ONNX Runtime's and protobuf's exceptions share no narrower base class
            raise PlanFormatError(f"it cannot be loaded: {error}") from error
        self._session = session
        metadata = {each.key: each.value for each in self._graph.metadata_props}
        version = metadata.get("format_version")
        if version != FORMAT_VERSION:
            raise PlanFormatError(f"it was built by version {version}, and this is {FORMAT_VERSION}")
        graph = self._graph.graph
        inputs = {value.name for value in session.get_inputs()}
        self.inputs: dict[str, PlanTensor] = {value.name: _describe(value) for value in graph.input if value.name in inputs}
        self.outputs: dict[str, PlanTensor] = {value.name: _describe(value) for value in graph.output}
        self.aliases: dict[str, str] = json.loads(metadata["aliases"])
        self.profiles: list[dict[str, Shape]] = [
            {name: tuple(sizes) for name, sizes in profile.items()} for profile in json.loads(metadata["profiles"])
        ]

    def profile_shapes(self, name: str, profile: int) -> list[Shape]:
        """Of an input: smallest, best and largest."""
        ranges = self.profiles[profile]
        return [self.inputs[name].at({each: sizes[which] for each, sizes in ranges.items()}) for which in range(3)]

    def activation_bytes(self, profile: int) -> int:
        """How much memory a context is asked for: stands in for a compiler's figure, and grows with the step as that does."""
        own = [each for name, each in self.inputs.items() if name not in self.aliases.values()]
        return sum(each.bytes_of(self.profile_shapes(each.name, profile)[-1]) for each in own)

    def output_shapes(self, sizes: Mapping[str, int]) -> dict[str, Shape]:
        """With these sizes for the names of the inputs' dimensions. Raises `ValueError` where the graph does not allow them."""
        model = onnx.ModelProto()
        model.CopyFrom(self._graph)
        for value in model.graph.input:
            for dimension in value.type.tensor_type.shape.dim:
                if dimension.dim_param:
                    dimension.dim_value = sizes[dimension.dim_param]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        try:
            inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise ValueError(f"the sizes {dict(sizes)} do not fit together: {error}") from error
        shapes = {value.name: _describe(value) for value in inferred.graph.output}
        unknown = [name for name, each in shapes.items() if -1 in each.shape]
        if unknown:
            raise ValueError(f"the shapes of {', '.join(unknown)} depend on data")
        return {name: each.shape for name, each in shapes.items()}

    def run(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """Read the inputs where they lie and write the outputs where they belong. Exceptions of ONNX Runtime pass through."""
        binding = self._session.io_binding()
        for name, each in self.inputs.items():
            binding.bind_input(name, "cpu", 0, each.dtype, shapes[name], addresses[name])
        for name, each in self.outputs.items():
            binding.bind_output(name, "cpu", 0, each.dtype, shapes[name], addresses[name])
        self._session.run_with_iobinding(binding)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with inputs in place of its large weights: what shapes are inferred from."""
    small = []
    for weight in model.graph.initializer:
        size = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize * math.prod(weight.dims)
        if size < LARGE_BYTES:
            small.append(weight)
        else:
            model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    del model.graph.initializer[:]
    model.graph.initializer.extend(small)
    # A message gives no memory back before it goes itself.
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    return kept


def _describe(value: onnx.ValueInfoProto) -> PlanTensor:
    tensor = value.type.tensor_type
    sizes = [each.dim_value if each.HasField("dim_value") else each.dim_param or "?" for each in tensor.shape.dim]
    return PlanTensor(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), tuple(sizes))
