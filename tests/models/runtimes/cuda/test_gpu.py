"""Which GPU is in the machine, as a driver tells it."""

import pytest

from models.protocols import BackendError
from models.runtimes.cuda import gpu
from models.runtimes.cuda.gpu import Gpu, cuda_version, find_gpu, gpu_count, read_gpu
from tests.support.fakes.fake_gpu_machine import Driver


def test_name_architecture_and_memory_are_read() -> None:
    assert read_gpu(Driver(), 0) == Gpu("NVIDIA H100 80GB HBM3", "sm_90", 80 * 2**30)


def test_a_driver_that_refuses_is_an_error_with_its_words() -> None:
    with pytest.raises(BackendError, match=r"cuInit failed with status 100 \(no CUDA-capable device is detected\)"):
        read_gpu(Driver(fails="cuInit"), 0)


def test_a_gpu_that_is_not_there_is_named_with_how_many_are() -> None:
    assert gpu_count(Driver(count=2)) == 2
    assert read_gpu(Driver(count=2), 1).architecture == "sm_90"
    with pytest.raises(BackendError, match="no GPU 2: the NVIDIA driver shows 2, numbered from 0"):
        read_gpu(Driver(count=2), 2)


@pytest.mark.parametrize(("number", "version"), [(13000, (13, 0)), (13010, (13, 1)), (12080, (12, 8))])
def test_the_driver_says_which_cuda_it_serves(number: int, version: tuple[int, int]) -> None:
    assert cuda_version(Driver(version=number)) == version


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-that-is-not-there.so")
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        find_gpu()
