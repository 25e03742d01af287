"""Which GPU is in the machine, as a driver tells it."""

import ctypes
from typing import Any

import pytest

from models import gpu
from models.backends import BackendError
from models.gpu import Gpu, find_gpu, read_gpu


class Driver:
    """Answers as the driver of an H100 does; `fails` is the function that returns an error."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            match name, arguments:
                case "cuDeviceGetName", (buffer, size, _):
                    assert size == ctypes.sizeof(buffer)
                    buffer.value = b"NVIDIA H100 80GB HBM3"
                case "cuDeviceTotalMem_v2", (memory, _):
                    memory._obj.value = 80 * 2**30
                case "cuDeviceGetAttribute", (attribute, number, _):
                    attribute._obj.value = {75: 9, 76: 0}[number]
            return 100 if name == self.fails else 0

        return function


def test_name_architecture_and_memory_are_read() -> None:
    assert read_gpu(Driver(), 0) == Gpu("NVIDIA H100 80GB HBM3", "sm_90", 80 * 2**30)


def test_a_driver_that_refuses_is_an_error_with_its_status() -> None:
    with pytest.raises(BackendError, match="cuInit failed with status 100"):
        read_gpu(Driver(fails="cuInit"), 0)


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-that-is-not-there.so")
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        find_gpu()
