"""Parts that the products share: row statistics gathered while multiplying, and the work before a tile is stored."""

import triton
import triton.language as tl


@triton.jit
def add_statistics(x, shift, columns_left, block_inner: tl.constexpr, even_inner: tl.constexpr, total, squares):
    """Add a tile x [rows, block_inner] to the running sums of (x - shift) and (x - shift)^2 [rows]."""
    shifted = x.to(tl.float32) - shift[:, None]
    if not even_inner:
        shifted = tl.where(tl.arange(0, block_inner)[None, :] < columns_left, shifted, 0.0)
    return total + tl.sum(shifted, 1), squares + tl.sum(shifted * shifted, 1)


@triton.jit
def normalise(product, shift, total, squares, sums, inner, epsilon: tl.constexpr):
    """LN(x) W of the product x W' [rows, columns]; `sums` [columns] are the column sums of W'."""
    shifted_mean = total / inner
    # With a value of the row itself as shift, what cancels here is at most `inner` times the variance.
    reciprocal = tl.rsqrt(tl.maximum(squares / inner - shifted_mean * shifted_mean, 0.0) + epsilon)
    return reciprocal[:, None] * (product - (shift + shifted_mean)[:, None] * sums[None, :])


@triton.jit
def finish(y, bias_pointer, residual_pointer, residual_stride, row, column, inside, columns, gelu: tl.constexpr):
    """residual + gelu(y + bias) of a tile [rows, columns]; `inside` says which elements exist."""
    y += tl.load(bias_pointer + column, mask=column < columns, other=0.0)[None, :]
    if gelu:
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    if residual_pointer is not None:
        residual = tl.load(residual_pointer + row[:, None] * residual_stride + column[None, :], mask=inside, other=0.0)
        y += residual.to(tl.float32)
    return y
