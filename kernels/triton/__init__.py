"""The operators as Triton kernels, with the names, signatures and contracts of `kernels.reference`."""

from kernels.triton.attention import attention
from kernels.triton.blank_filter import blank_filter
from kernels.triton.ctc_topk import ctc_topk
from kernels.triton.linear import linear

__all__ = ["attention", "blank_filter", "ctc_topk", "linear"]
