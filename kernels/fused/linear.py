"""The linear layers: norm in the prologue; bias, GELU and residual in the epilogue."""

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.fused.device import FLOATS, architecture, check_rows, multiprocessors
from kernels.fused.linear_kernels import linear_kernel, persistent_linear_kernel, reduce_kernel
from kernels.plain.weights import LAYER_NORM_EPSILON, LinearWeights
from kernels.tiles import REDUCE_COLUMNS, REDUCE_ROWS, REDUCE_WARPS, LinearTiles, launch_options, linear_tiles

FP8_ARCHITECTURE = 89


def linear(
    x: Tensor, layer: LinearWeights, live: Tensor, out_dtype: torch.dtype, residual: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """residual + gelu(norm(x) @ weight.T + bias): the contract of `kernels.plain.linear`.

    Rows of x, weight and residual must be contiguous and begin at multiples of 16 bytes.
    """
    tiles = linear_tiles(architecture(x.device), len(x), layer.columns, layer.inner, layer.column_sums is not None)
    return run_linear(x, layer, live, out_dtype, residual, gelu, tiles)


def run_linear(
    x: Tensor,
    layer: LinearWeights,
    live: Tensor,
    out_dtype: torch.dtype,
    residual: Tensor | None,
    gelu: bool,
    tiles: LinearTiles,
) -> Tensor:
    """`linear` with tiles of one's own choice."""
    check(x, layer, residual)
    out = torch.empty(len(x), layer.columns, dtype=out_dtype, device=x.device)
    if not len(x):
        return out
    if tiles.persistent:
        run_persistent(x, layer, live, residual, gelu, tiles, out)
    else:
        run_tiles(x, layer, live, residual, gelu, tiles, out)
    return out


def check(x: Tensor, layer: LinearWeights, residual: Tensor | None) -> None:
    check_rows("x", x)
    check_rows("weight", layer.weight)
    if x.dtype not in FLOATS or layer.weight.dtype not in (x.dtype, torch.float8_e4m3fn):
        raise ValueError(f"x in {x.dtype} with weights in {layer.weight.dtype}: x must be fp16 or bf16, weights the same or fp8")
    if layer.weight.dtype == torch.float8_e4m3fn and architecture(x.device) < FP8_ARCHITECTURE:
        raise ValueError(f"fp8 weights need sm_{FP8_ARCHITECTURE} or newer: pack them in {x.dtype}")
    if (layer.weight.dtype == torch.float8_e4m3fn) != (layer.scales is not None):
        raise ValueError("fp8 weights come with scales, and no others do")
    if x.shape[1] != layer.inner:
        raise ValueError(f"x is {x.shape[1]} wide, the layer reads {layer.inner}")
    if residual is not None:
        check_rows("residual", residual)
        if residual.dtype != x.dtype or residual.shape != (len(x), layer.columns):
            raise ValueError(f"residual must be {x.dtype} of {(len(x), layer.columns)}, not {residual.dtype} of {residual.shape}")


def run_tiles(
    x: Tensor, layer: LinearWeights, live: Tensor, residual: Tensor | None, gelu: bool, tiles: LinearTiles, out: Tensor
) -> None:
    rows, columns = out.shape
    is_split = tiles.splits > 1
    if is_split and layer.column_sums is not None:
        raise ValueError("a layer with a norm cannot be split: each part would see a part of the row only")
    residual_stride = 0 if residual is None else residual.stride(0)
    target = torch.empty(tiles.splits, rows, columns, device=x.device) if is_split else out
    grid = (triton.cdiv(columns, tiles.columns), triton.cdiv(rows, tiles.rows), tiles.splits)
    linear_kernel[grid](
        x, layer.weight, layer.bias, layer.column_sums, layer.scales, residual, target, live,
        rows, columns, layer.inner, x.stride(0), residual_stride, out.stride(0),
        gelu=gelu, epsilon=LAYER_NORM_EPSILON, splits=tiles.splits, even_inner=layer.inner % tiles.inner == 0,
        block_rows=tiles.rows, block_columns=tiles.columns, block_inner=tiles.inner,
        **tiles.options,
    )  # fmt: skip
    if is_split:
        grid = (triton.cdiv(columns, REDUCE_COLUMNS), triton.cdiv(rows, REDUCE_ROWS), 1)
        reduce_kernel[grid](
            target, layer.bias, layer.scales, residual, out, live, rows, columns, residual_stride, out.stride(0),
            gelu=gelu, splits=tiles.splits, block_rows=REDUCE_ROWS, block_columns=REDUCE_COLUMNS, **launch_options(REDUCE_WARPS),
        )  # fmt: skip


def run_persistent(
    x: Tensor, layer: LinearWeights, live: Tensor, residual: Tensor | None, gelu: bool, tiles: LinearTiles, out: Tensor
) -> None:
    rows, columns = out.shape
    check_rows("the result", out)
    programs = min(triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns), multiprocessors(x.device))
    persistent_linear_kernel[(programs,)](
        TensorDescriptor(x, [rows, layer.inner], [x.stride(0), 1], [tiles.rows, tiles.inner]),
        TensorDescriptor(layer.weight, [columns, layer.inner], [layer.inner, 1], [tiles.columns, tiles.inner]),
        TensorDescriptor(out, [rows, columns], [columns, 1], [tiles.rows, tiles.columns]),
        x, layer.bias, layer.column_sums, layer.scales, residual, live,
        rows, columns, layer.inner, x.stride(0), 0 if residual is None else residual.stride(0),
        gelu=gelu, epsilon=LAYER_NORM_EPSILON, even_inner=layer.inner % tiles.inner == 0,
        block_rows=tiles.rows, block_columns=tiles.columns, block_inner=tiles.inner,
        **tiles.options,
    )  # fmt: skip
