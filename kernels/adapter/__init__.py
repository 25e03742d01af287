"""The whole adapter over a ragged batch, from the operators of `kernels.triton` or of `kernels.reference`."""
