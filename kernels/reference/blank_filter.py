"""Twin of `kernels.triton.blank_filter`."""

import torch
from torch import Tensor


def blank_filter(blank_logits: Tensor, live: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which frames are read further: those whose P(blank) is below `threshold`, in order.

    blank_logits [rows] float32, any stride; `live` [1] int32 of them are meant. Returns P(blank) [rows] float32, the kept
    rows' numbers [rows] int32, and how many there are [1] int32; what follows that many, and `live`, is not defined.
    """
    probability = torch.empty(len(blank_logits), device=blank_logits.device)
    kept = torch.empty(len(blank_logits), dtype=torch.int32, device=blank_logits.device)
    probability[: int(live)] = torch.sigmoid(blank_logits[: int(live)])
    numbers = (probability[: int(live)] < threshold).nonzero()[:, 0].int()
    kept[: len(numbers)] = numbers
    return probability, kept, torch.tensor([len(numbers)], dtype=torch.int32, device=kept.device)
