"""The operators in plain torch: what the fused ones must equal. They run on any device."""

from kernels.plain.attention import attention
from kernels.plain.keep import keep
from kernels.plain.linear import linear
from kernels.plain.vocabulary import best_tokens

__all__ = ["attention", "best_tokens", "keep", "linear"]
