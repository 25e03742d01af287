"""Which frames are read further, on the device, so that a captured graph needs no answer from the host."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import BLANK_FILTER_BLOCK, BLANK_FILTER_WARPS, launch_options
from kernels.triton.device import architecture


@triton.jit
def blank_filter_kernel(
    logits_pointer,  # [rows] fp32
    live_pointer,  # [1] int32
    probability_pointer,  # [rows] fp32
    kept_pointer,  # [rows] int32
    count_pointer,  # [1] int32
    stride,
    threshold,
    block: tl.constexpr,
):
    """One program: the numbers of the kept rows are a running count over all rows, and there are few rows."""
    live = tl.load(live_pointer)
    count = 0
    for first in range(0, live, block):
        row = first + tl.arange(0, block)
        inside = row < live
        logits = tl.load(logits_pointer + row.to(tl.int64) * stride, mask=inside, other=0.0)
        probability = 1.0 / (1.0 + tl.exp(-logits))
        tl.store(probability_pointer + row, probability, mask=inside)
        is_kept = (inside & (probability < threshold)).to(tl.int32)
        tl.store(kept_pointer + count + tl.cumsum(is_kept, 0) - 1, row, mask=is_kept > 0)
        count += tl.sum(is_kept, 0)
    tl.store(count_pointer, count)


def blank_filter(blank_logits: Tensor, live: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """P(blank), the kept rows' numbers and their count: the contract of `kernels.reference.blank_filter`."""
    architecture(blank_logits.device)
    probability = torch.empty(len(blank_logits), device=blank_logits.device)
    kept = torch.empty(len(blank_logits), dtype=torch.int32, device=blank_logits.device)
    count = torch.empty(1, dtype=torch.int32, device=blank_logits.device)
    blank_filter_kernel[(1,)](
        blank_logits, live, probability, kept, count, blank_logits.stride(0), threshold,
        block=BLANK_FILTER_BLOCK, **launch_options(BLANK_FILTER_WARPS),
    )  # fmt: skip
    return probability, kept, count
