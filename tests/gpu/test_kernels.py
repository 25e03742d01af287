"""Each of the adapter's kernels, compiled for the GPU of this machine, gives what its reference operator gives."""

import pytest
import torch

from tests.support.gpu.rig import reason_without_gpu
from tests.support.kernels.parity_cases import TOLERANCES, Case, all_cases, error

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_a_compiled_kernel_equals_its_reference(case: Case) -> None:
    """The tiles are those of an H100: another GPU may refuse some."""
    if reason := reason_without_gpu():
        pytest.skip(reason)
    with torch.device("cuda"):
        for mine, expected in case.compare():
            assert error(mine, expected) <= TOLERANCES[mine.dtype]
