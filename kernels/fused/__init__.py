"""The operators as Triton kernels, with the names, signatures and contracts of `kernels.plain`."""

from kernels.fused.attention import attention
from kernels.fused.keep import keep
from kernels.fused.linear import linear
from kernels.fused.vocabulary import best_tokens

__all__ = ["attention", "best_tokens", "keep", "linear"]
