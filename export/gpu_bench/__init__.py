"""`python -m export.gpu_bench`: the tests that need a GPU, and what the models take on it, as one report."""
