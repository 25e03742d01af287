"""A bundle with plans for the simulated GPU, and simulated GPUs in place of real ones."""

import pytest

from models.bundle.io import Bundle
from tests.support.simulated_gpu.serving import simulated_gpus
from tests.support.tiny.tiny_bundle import add_simulated_plans, write_speaking_bundle

__all__ = ["simulated_gpus"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that speaks, with plans of all parts."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return add_simulated_plans(folder, write_speaking_bundle(folder))
