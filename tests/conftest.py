"""Settings of the whole suite."""

import os
import sys

import pytest
from hypothesis import settings

from tests.support.stalls import StallPlugin

pytest_plugins = ["pytester"]

# Several processes share the cores where the suite runs in several (`-n`): one thread each, in whatever computes. The libraries
# read this at their import.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

# Triton decides at its import, for good: here its kernels run in the interpreter, on CPU tensors. Tests on a GPU set it to 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Triton has no wheels elsewhere.
collect_ignore_glob = [] if sys.platform == "linux" else ["test_kernel_*.py", "test_gpu_bench.py"]

# No example fails for being slow on a busy machine, and every run sees the same examples.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(StallPlugin())
