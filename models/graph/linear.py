"""Linear layers of a graph: plain, and quantised for ONNX Runtime in blocks (`MatMulNBits`) or by rows (`MatMulIntegerToFloat`).

Both round activations to 8 bits row by row as the graph runs, so a row's result does not depend on its neighbours in the batch
(as `DynamicQuantizeLinear`'s would). Blocks, each a run of inputs with a scale of its own, stand activations of very different
sizes; rows are multiplied more than twice as fast.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.graph.writer import GraphBuilder

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

Linear = Callable[[GraphBuilder, str, str, Float32], str]
"""Writes `value @ weight.T`: (graph, value, weight's name, weight [outputs, inputs]) -> the product's name."""


def float32_linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
    """Write the plain product."""
    return graph.node("MatMul", value, graph.weight(name, np.ascontiguousarray(weight.T)))


def transposed_linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
    """Write the plain product with the weight stored untransposed, so that it can also be an embedding table."""
    return graph.node("MatMul", value, graph.node("Transpose", graph.weight(name, weight), perm=[1, 0]))


INT8_COMPUTE = 4
"""The `accuracy_level` under which the operator multiplies in 8-bit integers."""
SHRINKS = np.linspace(1.0, 0.8, 9, dtype=np.float32)
"""Fractions of a 4-bit block's range that are tried: clipping the largest weight often costs less than a coarser step."""


@dataclass(frozen=True)
class BlockFormat:
    """4 or 8 `bits`, `block` a power of two from 16; without `symmetric` each block has a zero point too."""

    bits: int
    block: int
    symmetric: bool


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight [outputs, inputs] in blocks: `levels` [outputs, blocks, block] in 0..2^bits-1, `scales` and
    `zero_points` [outputs, blocks]; weight = scale * (level - zero_point). Inputs are padded to whole blocks.
    """

    form: BlockFormat
    inputs: int
    levels: UInt8
    scales: Float32
    zero_points: UInt8

    def dequantise(self) -> Float32:
        """Return the weight [outputs, inputs] that the runtime computes with."""
        centred = self.levels.astype(np.float32) - self.zero_points[..., None]
        return (centred * self.scales[..., None]).reshape(len(self.levels), -1)[:, : self.inputs]


def quantise(weight: Float32, form: BlockFormat) -> QuantisedWeight:
    """Round `weight` [outputs, inputs] to the nearest levels, with the range per block that gives the least squared error."""
    outputs, inputs = weight.shape
    blocks = np.pad(weight, ((0, 0), (0, -inputs % form.block))).reshape(outputs, -1, form.block)
    best_error = np.full(blocks.shape[:2], np.inf, np.float32)
    levels = np.zeros(blocks.shape, np.uint8)
    scales = np.zeros(blocks.shape[:2], np.float32)
    zero_points = np.zeros(blocks.shape[:2], np.uint8)
    for shrink in SHRINKS if form.bits == 4 else SHRINKS[:1]:
        scale, zero_point = _ranges(blocks, form, shrink)
        level = np.clip(np.rint(blocks / scale[..., None]) + zero_point[..., None], 0, 2**form.bits - 1)
        error = np.square((level - zero_point[..., None]) * scale[..., None] - blocks).sum(-1)
        better = error < best_error
        best_error[better], scales[better], zero_points[better] = error[better], scale[better], zero_point[better]
        levels[better] = level[better]
    return QuantisedWeight(form, inputs, levels, scales, zero_points)


def block_linear(form: BlockFormat, accuracy_level: int = INT8_COMPUTE) -> Linear:
    """Return a writer of linear layers whose weights are stored in `form`, and multiplied as ONNX Runtime's level says."""

    def linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
        quantised = quantise(weight, form)
        outputs, inputs = weight.shape
        constants = [
            graph.weight(f"{name}.levels", _pack(quantised.levels, form.bits)),
            graph.weight(f"{name}.scales", quantised.scales),
        ]
        if not form.symmetric:
            constants.append(graph.weight(f"{name}.zero_points", _pack(quantised.zero_points, form.bits)))
        sizes = {"N": outputs, "K": inputs, "bits": form.bits, "block_size": form.block, "accuracy_level": accuracy_level}
        if form.bits == 8:
            return graph.node("MatMulNBits", value, *constants, domain="com.microsoft", **sizes)
        # On a CPU without VNNI a lone row of 4-bit products is summed in another order: it is multiplied beside a copy of itself.
        first, second, axis = (graph.weight(f"row.{name}", np.array([at], np.int64)) for name, at in _ROWS.items())
        copied = graph.node("Concat", value, graph.node("Slice", value, first, second, axis), axis=-2)
        products = graph.node("MatMulNBits", copied, *constants, domain="com.microsoft", **sizes)
        return graph.node("Slice", products, first, graph.weight("row.last", np.array([-1], np.int64)), axis)

    return linear


_ROWS = {"first": 0, "second": 1, "of_rows": -2}
"""Places along the axis of rows."""


def _ranges(blocks: Float32, form: BlockFormat, shrink: np.float32) -> tuple[Float32, Float32]:
    """Return scale and (integral) zero point per block. An asymmetric range always holds zero."""
    top = 2**form.bits - 1
    if form.symmetric:
        # The end with the larger magnitude gets the one level more that the lower half has.
        extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)[..., 0]
        scale = extreme * shrink / -np.float32(2 ** (form.bits - 1))
        zero_point = np.full_like(scale, 2 ** (form.bits - 1))
    else:
        low, high = np.minimum(blocks.min(-1), 0) * shrink, np.maximum(blocks.max(-1), 0) * shrink
        scale = (high - low) / np.float32(top)
        zero_point = np.rint(-low / np.where(scale == 0, 1, scale))
    # A block of zeros, or of numbers too small to divide by, is all level zero.
    usable = np.abs(scale) >= np.finfo(np.float32).tiny
    return np.where(usable, scale, 1).astype(np.float32), np.where(usable, zero_point, _zero_level(form)).astype(np.float32)


def _zero_level(form: BlockFormat) -> int:
    """Return the level of zero in a block of zeros."""
    return 2 ** (form.bits - 1) if form.symmetric else 0


def _pack(levels: UInt8, bits: int) -> UInt8:
    """Pack the last axis; of two 4-bit levels the earlier one takes the lower half of the byte."""
    if bits == 8:
        return levels
    if levels.shape[-1] % 2:
        levels = np.concatenate([levels, np.zeros_like(levels[..., :1])], axis=-1)
    return (levels[..., ::2] | levels[..., 1::2] << 4).astype(np.uint8)


def row_linear(bits: int) -> Linear:
    """Return a writer of linear layers with weights of 7 or 8 `bits`, one scale per output.

    With VNNI both are as fast. Without it the quickest product adds two neighbours in 16 bits, which 8-bit weights can overflow:
    7 bits are up to a quarter faster there.

    Activations are rounded to 8 bits, one scale per row. Integer sums have the same bits beside any number of rows. Channels
    should be alike in size, because a row's largest activation sets the step of all. A row of zeros gives zeros.
    """
    largest_level = 2 ** (bits - 1) - 1

    def linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
        axis = graph.weight("row.axis", np.array([-1], np.int64))
        largest = graph.node("ReduceMax", graph.node("Abs", value), axis, keepdims=1)
        step, zero = graph.weight("row.step", np.array(1 / 127, np.float32)), graph.weight("row.zero", np.array(128, np.uint8))
        rounded = graph.node("QuantizeLinear", graph.node("Div", value, largest), step, zero)
        levels, scales = _quantise_rows(weight, largest_level)
        constants = [graph.weight(f"{name}.levels", levels), step, graph.weight(f"{name}.scales", scales), zero]
        return graph.node("Mul", graph.node("MatMulIntegerToFloat", rounded, *constants, domain="com.microsoft"), largest)

    return linear


def _quantise_rows(weight: Float32, largest_level: int) -> tuple[npt.NDArray[np.int8], Float32]:
    """Return levels [inputs, outputs] and scales [outputs], some rows at a time so that a head needs little memory."""
    outputs, inputs = weight.shape
    levels, scales = np.empty((inputs, outputs), np.int8), np.empty(outputs, np.float32)
    for first in range(0, outputs, ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        part = weight[rows]
        scales[rows] = np.maximum(np.abs(part).max(axis=1), np.finfo(np.float32).tiny) / np.float32(largest_level)
        levels[:, rows] = np.rint(part / scales[rows, None]).astype(np.int8).T
    return levels, scales


ROWS_AT_ONCE = 4096


def linear_by_name(special: Mapping[str, Linear], rest: Linear) -> Linear:
    """Return a writer that uses the layer of `special` whose key is part of the weight's name, else `rest`."""

    def linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
        chosen = next((each for part, each in special.items() if part in name), rest)
        return chosen(graph, value, name, weight)

    return linear


INT8 = BlockFormat(bits=8, block=64, symmetric=True)
INT4 = BlockFormat(bits=4, block=32, symmetric=False)
