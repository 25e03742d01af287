"""Kernels compiled for each architecture, without a GPU, and compared with a committed baseline."""
