"""The whole adapter over a ragged batch, from the operators of `kernels.fused` or of `kernels.plain`."""
