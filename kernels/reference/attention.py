"""Twin of `kernels.triton.attention`."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional


def attention(qkv: Tensor, boundaries: Tensor, heads: int, cosines: Tensor, sines: Tensor) -> Tensor:
    """Each utterance's frames attend to each other, both ways: [rows, width] in the dtype of qkv.

    qkv [rows, 3 * width] holds queries, keys and values side by side. `boundaries` [utterances + 1] int32, ascending from 0:
    utterance i is rows boundaries[i] to boundaries[i + 1]; it may be empty. The result of rows after the last boundary is not
    defined. Queries and keys are turned by rotary embedding in the half-rotation form, by the tables' row of the frame's place
    in its utterance: cosines and sines [frames, head_size / 2] float32, with at least as many frames as qkv has rows.
    """
    width = qkv.shape[1] // 3
    out = torch.empty(len(qkv), width, dtype=qkv.dtype, device=qkv.device)
    edges = boundaries.tolist()
    for start, end in pairwise(edges):
        q, k, v = qkv[start:end].unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
        turned = (rotate(part.float(), cosines[: end - start], sines[: end - start]).to(v.dtype) for part in (q, k))
        y = functional.scaled_dot_product_attention(*(part.float() for part in (*turned, v)))
        out[start:end] = y.transpose(0, 1).flatten(1).to(out.dtype)
    return out


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)
