"""What can be said of the kernels without a GPU: compiled for each architecture, looked at, and held to a committed baseline."""
