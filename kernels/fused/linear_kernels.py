"""The products on the device: a tile a program, the same cut along the inner dimension, and persistent over TMA.

The number of rows is kept out of Triton's specialisation, here and in the other kernels: a bucket more is no kernel more.
"""

import triton
import triton.language as tl

from kernels.fused.epilogue import add_statistics, finish, normalise


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
