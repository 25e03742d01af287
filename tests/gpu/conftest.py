"""Run these tests on a simulated GPU with tiny models, and with `-m gpu` on a GPU with the default models."""

import pytest

from tests.support.gpu.rig import Rig, gpu_rig, reason_without_gpu, simulated_rig


@pytest.fixture(scope="session", params=["simulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    if request.param == "simulated":
        return simulated_rig(tmp_path_factory.mktemp("rig") / "tiny")
    if reason := reason_without_gpu():
        pytest.skip(reason)
    return gpu_rig()
