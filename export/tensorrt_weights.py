"""Linear layers whose weights TensorRT keeps in 8 or 4 bits and turns into the graph's float type as it multiplies.

Standard ONNX (`DequantizeLinear` before `MatMul`), so ONNX Runtime computes the same on a CPU. Activations are not rounded.
TensorRT merges no products behind a `DequantizeLinear`: query, key and value, and gate and up, have to come as one.
"""

import numpy as np
import numpy.typing as npt

from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import BFLOAT16, FLOAT8, INT4, GraphBuilder

BLOCK = 64
"""Inputs that share a scale in 4 bits."""
FLOAT8_LARGEST = np.float32(448)
SMALLEST_SCALE = np.finfo(np.float32).tiny


def int8_linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
    """8-bit integers with a scale per output."""
    scales = np.maximum(np.abs(weight).max(axis=1), SMALLEST_SCALE) / np.float32(127)
    levels = np.ascontiguousarray(np.rint(weight / scales[:, None]).astype(np.int8).T)
    weights = [graph.weight(f"{name}.levels", levels), graph.weight(f"{name}.scales", scales)]
    return graph.node("MatMul", value, graph.node("DequantizeLinear", *weights, axis=1))


def int4_linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
    """4-bit integers with a scale per output and `BLOCK` inputs, of which there has to be a whole number."""
    outputs, inputs = weight.shape
    if inputs % BLOCK:
        raise ValueError(f"{name} has {inputs} inputs, which are no whole number of blocks of {BLOCK}")
    blocks = weight.reshape(outputs, inputs // BLOCK, BLOCK)
    scales = np.maximum(np.abs(blocks).max(axis=2), SMALLEST_SCALE) / np.float32(7)
    levels = np.rint(blocks / scales[..., None]).astype(np.int8).reshape(outputs, inputs)
    weights = [
        graph.weight(f"{name}.levels", np.ascontiguousarray(levels.T).astype(INT4)),
        graph.weight(f"{name}.scales", np.ascontiguousarray(scales.T)),
    ]
    return graph.node("MatMul", value, graph.node("DequantizeLinear", *weights, axis=0, block_size=BLOCK))


def float8_linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
    """8-bit floats (e4m3) with one scale per output."""
    scales = np.maximum(np.abs(weight).max(axis=1), SMALLEST_SCALE) / FLOAT8_LARGEST
    levels = np.ascontiguousarray((weight / scales[:, None]).T).astype(FLOAT8)
    weights = [graph.weight(f"{name}.levels", levels), graph.weight(f"{name}.scales", scales)]
    return graph.node("MatMul", value, graph.node("DequantizeLinear", *weights, axis=1))


WEIGHT_FORMATS: dict[str, Linear] = {
    "bf16": float32_linear,
    "int8": int8_linear,
    "int4": int4_linear,
    "fp8": float8_linear,
    "fp32": float32_linear,
}
"""The layers' products by the precision's name."""


def float_type_of(precision: str) -> npt.DTypeLike:
    """Return the type that everything else is computed in."""
    return np.float32 if precision == "fp32" else BFLOAT16
