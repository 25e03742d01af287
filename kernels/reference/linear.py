"""Twin of `kernels.triton.linear`."""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.reference.weights import LAYER_NORM_EPSILON, LinearWeights


def linear(
    x: Tensor, layer: LinearWeights, live: Tensor, out_dtype: torch.dtype, residual: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """residual + gelu(norm(x) @ weight.T + bias), [rows, columns] in `out_dtype`; products, statistics and sums are float32.

    x [rows, inner] in fp16 or bf16; its rows may be apart by any stride, which is how frames are subsampled or stacked for
    nothing. `live` [1] int32 says how many rows are meant: what the rest of the result holds is not defined. The norm is
    there if the layer carries one. residual [rows, columns] has the dtype of x.
    """
    count = int(live)
    rows = x[:count].float()
    weight = layer.weight.to(x.dtype).float()
    y = rows @ weight.T
    if layer.column_sums is not None:
        mean = rows.mean(1, keepdim=True)
        variance = (rows - mean).square().mean(1, keepdim=True)
        y = torch.rsqrt(variance + LAYER_NORM_EPSILON) * (y * scale_of(layer) - mean * layer.column_sums)
    else:
        y = y * scale_of(layer)
    y = y + layer.bias
    if gelu:
        y = functional.gelu(y)
    if residual is not None:
        y = y + residual[:count].float()
    out = torch.empty(len(x), layer.columns, dtype=out_dtype, device=x.device)
    out[:count] = y.to(out_dtype)
    return out


def scale_of(layer: LinearWeights) -> Tensor | float:
    return 1.0 if layer.scales is None else layer.scales
