"""A linear layer's weights as the kernels read them: norm folded in, fp8 with a scale per output column."""

from dataclasses import dataclass

import torch
from torch import Tensor

FP8_LARGEST = torch.finfo(torch.float8_e4m3fn).max
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class LinearWeights:
    """One layer: y = x @ weight.T * scales + bias, of LayerNorm(x) where `column_sums` are given.

    `weight` [columns, inner] in fp16, bf16 or fp8 (e4m3), contiguous; `bias` [columns] float32. With a norm in front, its scale
    is multiplied into the weight and its shift into the bias, and LN(x) W + b = rstd * (x W' - mean * column_sums) + b'.
    `column_sums` [columns] float32 are those of the weights as stored (rounded, scaled back), so that the mean cancels exactly.
    `scales` [columns] float32 belong to fp8 weights.
    """

    weight: Tensor
    bias: Tensor
    column_sums: Tensor | None = None
    scales: Tensor | None = None

    @property
    def columns(self) -> int:
        return self.weight.shape[0]

    @property
    def inner(self) -> int:
        return self.weight.shape[1]


def pack_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype, norm: tuple[Tensor, Tensor] | None = None) -> LinearWeights:
    """weight [columns, inner] and bias [columns] as trained; `norm` is the scale and shift [inner] of the LayerNorm in front."""
    weight, bias = weight.float(), bias.float()
    if norm is not None:
        scale, shift = (part.float() for part in norm)
        bias = bias + weight @ shift
        weight = weight * scale
    scales = None
    stored = weight
    if dtype == torch.float8_e4m3fn:
        scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / FP8_LARGEST
        stored = weight / scales[:, None]
    stored = stored.to(dtype).contiguous()
    read_back = stored.float() if scales is None else stored.float() * scales[:, None]
    return LinearWeights(stored, bias.contiguous(), None if norm is None else read_back.sum(1), scales)
