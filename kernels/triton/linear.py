"""The linear layers: norm in the prologue; bias, GELU and residual in the epilogue."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.reference.weights import LAYER_NORM_EPSILON, LinearWeights
from kernels.tiles import REDUCE_COLUMNS, REDUCE_ROWS, REDUCE_WARPS, LinearTiles, launch_options, linear_tiles
from kernels.triton.device import FLOATS, architecture, check_rows, multiprocessors
from kernels.triton.epilogue import add_statistics, finish, normalise

FP8_ARCHITECTURE = 89


def linear(
    x: Tensor, layer: LinearWeights, live: Tensor, out_dtype: torch.dtype, residual: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """residual + gelu(norm(x) @ weight.T + bias): the contract of `kernels.reference.linear`.

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


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x_pointer,  # [rows, inner] fp16 or bf16
    weight_pointer,  # [columns, inner] fp16, bf16 or fp8
    bias_pointer,  # [columns] fp32
    sums_pointer,  # [columns] fp32, or None: no norm
    scales_pointer,  # [columns] fp32, or None
    residual_pointer,  # [rows, columns], or None
    out_pointer,  # [rows, columns]; with splits, partial sums [splits, rows, columns] fp32
    live_pointer,  # [1] int32
    rows,
    columns,
    inner,
    x_stride,
    residual_stride,
    out_stride,
    gelu: tl.constexpr,
    epsilon: tl.constexpr,
    splits: tl.constexpr,
    even_inner: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_inner: tl.constexpr,
):
    first_row = tl.program_id(1) * block_rows
    if first_row >= tl.load(live_pointer):
        return
    row = first_row + tl.arange(0, block_rows).to(tl.int64)
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns).to(tl.int64)
    depth = tl.arange(0, block_inner)
    # Rows and columns past the end read the last ones: no mask, and never stored.
    x_tile = x_pointer + tl.minimum(row, rows - 1)[:, None] * x_stride + depth[None, :]
    weight_tile = weight_pointer + tl.minimum(column, columns - 1)[:, None] * inner + depth[None, :]
    product = tl.zeros((block_rows, block_columns), tl.float32)
    if sums_pointer is not None:
        shift = tl.load(x_pointer + tl.minimum(row, rows - 1) * x_stride).to(tl.float32)
        total = tl.zeros((block_rows,), tl.float32)
        squares = tl.zeros((block_rows,), tl.float32)
    part = tl.program_id(2)
    chunk = tl.cdiv(tl.cdiv(inner, block_inner), splits) * block_inner
    for start in range(part * chunk, tl.minimum(part * chunk + chunk, inner), block_inner):
        if even_inner:
            x = tl.load(x_tile + start)
            weight = tl.load(weight_tile + start)
        else:
            x = tl.load(x_tile + start, mask=depth[None, :] < inner - start, other=0.0)
            weight = tl.load(weight_tile + start, mask=depth[None, :] < inner - start, other=0.0)
        product = tl.dot(x, weight.to(x.dtype).T, product)
        if sums_pointer is not None:
            total, squares = add_statistics(x, shift, inner - start, block_inner, even_inner, total, squares)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    if splits > 1:
        out_tile = out_pointer + (part * rows + row)[:, None] * columns + column[None, :]
        tl.store(out_tile, product, mask=inside)
    else:
        if scales_pointer is not None:
            product *= tl.load(scales_pointer + column, mask=column < columns, other=0.0)[None, :]
        if sums_pointer is not None:
            sums = tl.load(sums_pointer + column, mask=column < columns, other=0.0)
            product = normalise(product, shift, total, squares, sums, inner, epsilon)
        y = finish(product, bias_pointer, residual_pointer, residual_stride, row, column, inside, columns, gelu)
        out_tile = out_pointer + row[:, None] * out_stride + column[None, :]
        tl.store(out_tile, y.to(out_pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def reduce_kernel(
    partial_pointer,  # [splits, rows, columns] fp32
    bias_pointer,  # [columns] fp32
    scales_pointer,  # [columns] fp32, or None
    residual_pointer,  # [rows, columns], or None
    out_pointer,  # [rows, columns]
    live_pointer,  # [1] int32
    rows,
    columns,
    residual_stride,
    out_stride,
    gelu: tl.constexpr,
    splits: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Sums the parts in their order, so that the result is the same in each run; the epilogue follows."""
    first_row = tl.program_id(1) * block_rows
    if first_row >= tl.load(live_pointer):
        return
    row = first_row + tl.arange(0, block_rows).to(tl.int64)
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns).to(tl.int64)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    product = tl.zeros((block_rows, block_columns), tl.float32)
    for part in tl.static_range(splits):
        tile = partial_pointer + (part * rows + row)[:, None] * columns + column[None, :]
        product += tl.load(tile, mask=inside, other=0.0)
    if scales_pointer is not None:
        product *= tl.load(scales_pointer + column, mask=column < columns, other=0.0)[None, :]
    y = finish(product, bias_pointer, residual_pointer, residual_stride, row, column, inside, columns, gelu)
    tl.store(out_pointer + row[:, None] * out_stride + column[None, :], y.to(out_pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def persistent_linear_kernel(
    x_descriptor,  # [rows, inner] in blocks [block_rows, block_inner]
    weight_descriptor,  # [columns, inner] in blocks [block_columns, block_inner]
    out_descriptor,  # [rows, columns] in blocks [block_rows, block_columns]
    x_pointer,  # as x_descriptor, for the first column
    bias_pointer,  # [columns] fp32
    sums_pointer,  # [columns] fp32, or None: no norm
    scales_pointer,  # [columns] fp32, or None
    residual_pointer,  # [rows, columns], or None
    live_pointer,  # [1] int32
    rows,
    columns,
    inner,
    x_stride,
    residual_stride,
    gelu: tl.constexpr,
    epsilon: tl.constexpr,
    even_inner: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_inner: tl.constexpr,
):
    """As many programs as the device runs at once; each takes every so-many-th tile. Neighbours share their rows of x."""
    column_tiles = tl.cdiv(columns, block_columns)
    tiles = tl.cdiv(tl.load(live_pointer), block_rows) * column_tiles
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first_row = (tile // column_tiles) * block_rows
        first_column = (tile % column_tiles) * block_columns
        row = first_row + tl.arange(0, block_rows).to(tl.int64)
        column = first_column + tl.arange(0, block_columns).to(tl.int64)
        product = tl.zeros((block_rows, block_columns), tl.float32)
        if sums_pointer is not None:
            # Rows past the end are read as zeros.
            shift = tl.load(x_pointer + row * x_stride, mask=row < rows, other=0.0).to(tl.float32)
            total = tl.zeros((block_rows,), tl.float32)
            squares = tl.zeros((block_rows,), tl.float32)
        for start in range(0, inner, block_inner):
            x = x_descriptor.load([first_row, start])
            weight = weight_descriptor.load([first_column, start])
            product = tl.dot(x, weight.to(x.dtype).T, product)
            if sums_pointer is not None:
                total, squares = add_statistics(x, shift, inner - start, block_inner, even_inner, total, squares)
        if scales_pointer is not None:
            product *= tl.load(scales_pointer + column, mask=column < columns, other=0.0)[None, :]
        if sums_pointer is not None:
            sums = tl.load(sums_pointer + column, mask=column < columns, other=0.0)
            product = normalise(product, shift, total, squares, sums, inner, epsilon)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        y = finish(product, bias_pointer, residual_pointer, residual_stride, row, column, inside, columns, gelu)
        out_descriptor.store([first_row, first_column], y.to(out_descriptor.dtype))
