"""A small builder of ONNX graphs: nodes and weights go in by one call each, a checked file comes out.

Every value is named by a plain string: what `input`, `weight` and `node` return is what `node` and `output` take.
The same calls give the same bytes: names are numbered in call order, and nothing of the machine goes into the file.
The ONNX library is imported by `save` only: a server imports the families' modules, and writes no graph.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16, float8_e4m3fn, int4

if TYPE_CHECKING:
    import onnx

OPSET = 24
IR_VERSION = 11
EXTERNAL_FROM_BYTES = 1024
"""Weights of this size or more are stored beside the graph; the rest inside it, where shape inference can read them."""
ALIGNMENT_BYTES = 4096
"""Each stored weight starts on a memory page, so that a runtime can map it."""

BFLOAT16 = np.dtype(bfloat16)
FLOAT8 = np.dtype(float8_e4m3fn)
INT4 = np.dtype(int4)

Array = npt.NDArray[Any]
Shape = Sequence[int | str]

MASKED = np.float32(-1e30)
"""Added to the scores of what is not seen: its weight is exactly 0, and no infinity can make a NaN."""


@dataclass(frozen=True)
class Value:
    """A graph's input or output."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape


@dataclass(frozen=True)
class Node:
    """An operator; an attribute that is a numpy dtype stands for ONNX's number of it."""

    name: str
    op: str
    inputs: list[str]
    outputs: list[str]
    domain: str
    attributes: dict[str, Any]


class GraphBuilder:
    """Collects one graph. Shapes hold ints for fixed and strings for symbolic dimensions.

    `float_type` is what the graph computes in: float32 weights are stored in it, and float32 inputs and outputs are cast
    where they enter and leave.

    >>> graph = GraphBuilder("double")
    >>> x = graph.input("x", np.float32, ["batch", 4])
    >>> y = graph.node("Add", x, x)
    >>> graph.output(y, "y", np.float32, ["batch", 4])
    >>> graph.save(path)
    """

    def __init__(self, name: str, float_type: npt.DTypeLike = np.float32) -> None:
        self.name = name
        self.float_type = np.dtype(float_type)
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._nodes: list[Node] = []
        self._weights: dict[str, Array] = {}
        self._names: Counter[str] = Counter()

    def input(self, name: str, dtype: npt.DTypeLike, shape: Shape) -> str:
        """Declare a graph input and return the value to compute with."""
        self._inputs.append(Value(name, np.dtype(dtype), shape))
        if np.dtype(dtype) != np.float32 or self.float_type == np.float32:
            return name
        return self.node("Cast", name, to=self.float_type)

    def output(self, value: str, name: str, dtype: npt.DTypeLike, shape: Shape) -> None:
        """Make `value` the output `name`: the node that computes it writes `name` itself.

        Raises `ValueError` if no node computes `value`.
        """
        if not any(value in node.outputs for node in self._nodes):
            raise ValueError(f"{value} is not the output of a node")
        if np.dtype(dtype) == np.float32 and self.float_type != np.float32:
            value = self.node("Cast", value, to=np.dtype(np.float32))
        for node in self._nodes:
            node.inputs[:] = [name if each == value else each for each in node.inputs]
            node.outputs[:] = [name if each == value else each for each in node.outputs]
        self._outputs.append(Value(name, np.dtype(dtype), shape))

    def weight(self, name: str, array: Array) -> str:
        """Add a constant tensor and return its name. The same array under the same name is stored once.

        Raises `ValueError` for another array under a used name.
        """
        known = self._weights.setdefault(name, array)
        if known is not array and not (known.dtype == array.dtype and np.array_equal(known, array)):
            raise ValueError(f"two different weights are named {name}")
        return name

    def integers(self, *numbers: int, name: str = "numbers") -> str:
        """Add a constant list of integers, named after them."""
        return self.weight(f"{name}.{'.'.join(map(str, numbers))}", np.array(numbers, np.int64))

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Append an operator with one output and return the output's name; "" leaves out an optional input."""
        return self.nodes(op, *inputs, outputs=1, domain=domain, **attributes)[0]

    def nodes(self, op: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """Append an operator with several outputs and return their names."""
        number = self._names[op]
        self._names[op] += 1
        name = f"{op}_{number}"
        names = [name if outputs == 1 else f"{name}.{index}" for index in range(outputs)]
        self._nodes.append(Node(name, op, list(inputs), list(names), domain, attributes))
        return names

    def save(self, path: Path) -> None:
        """Write `path` and, where weights are large, `path`.data beside it; the file passes the ONNX checker.

        Raises `onnx.checker.ValidationError` or `onnx.shape_inference.InferenceError` for a graph that is not valid.
        """
        import onnx
        from onnx import helper

        data_path = path.with_name(path.name + ".data")
        tensors = []
        with data_path.open("wb") as data:
            for name, given in self._weights.items():
                array = given.astype(self.float_type, copy=False) if given.dtype == np.float32 else given
                if array.nbytes < EXTERNAL_FROM_BYTES:
                    tensors.append(onnx.numpy_helper.from_array(array, name))
                    continue
                data.write(b"\0" * (-data.tell() % ALIGNMENT_BYTES))
                content = _packed(array)
                tensors.append(_external_tensor(name, array, data_path.name, data.tell(), content.nbytes))
                data.write(content.data)
            empty = data.tell() == 0
        if empty:
            data_path.unlink()

        inputs, outputs = ([_value_info(each) for each in values] for values in (self._inputs, self._outputs))
        graph = helper.make_graph([_node_proto(each) for each in self._nodes], self.name, inputs, outputs, tensors)
        domains = sorted({node.domain for node in self._nodes} - {""})
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="thinbridge")
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(path), full_check=True)


def _value_info(value: Value) -> "onnx.ValueInfoProto":
    from onnx import helper

    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _node_proto(node: Node) -> "onnx.NodeProto":
    from onnx import helper

    attributes: dict[str, Any] = {
        name: helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else value
        for name, value in node.attributes.items()
    }
    return helper.make_node(node.op, node.inputs, node.outputs, name=node.name, domain=node.domain, **attributes)


def _packed(array: Array) -> npt.NDArray[np.uint8]:
    """Return the bytes of a tensor in a file; of two 4-bit numbers the earlier one takes the lower half of a byte."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if array.dtype != INT4:
        return flat.view(np.uint8)
    nibbles = np.zeros(flat.size + flat.size % 2, np.uint8)
    nibbles[: flat.size] = flat.astype(np.int8).view(np.uint8) & 15
    return np.bitwise_or(nibbles[::2], np.left_shift(nibbles[1::2], 4), dtype=np.uint8)


def _external_tensor(name: str, array: Array, location: str, offset: int, length: int) -> "onnx.TensorProto":
    from onnx import TensorProto, helper

    tensor = TensorProto(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor
