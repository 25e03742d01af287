"""The operators in torch: contracts that the Triton kernels must meet. They run on any device."""

from kernels.reference.attention import attention
from kernels.reference.blank_filter import blank_filter
from kernels.reference.ctc_topk import ctc_topk
from kernels.reference.linear import linear

__all__ = ["attention", "blank_filter", "ctc_topk", "linear"]
