"""Which GPU is in the machine, asked of the driver itself: no CUDA library has to be installed."""

import ctypes
from dataclasses import dataclass
from typing import Any

from models.backends import BackendError

DRIVER = "libcuda.so.1"
MAJOR_ATTRIBUTE, MINOR_ATTRIBUTE = 75, 76
NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """`architecture` is what plans and kernels are compiled for, such as `sm_90`."""

    name: str
    architecture: str
    memory_bytes: int


def find_gpu(ordinal: int = 0) -> Gpu:
    """The GPU of that number. Raises `BackendError` where there is no driver or no such GPU."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise BackendError(f"this machine has no NVIDIA driver ({error})") from error
    return read_gpu(driver, ordinal)


def read_gpu(driver: Any, ordinal: int) -> Gpu:
    """Ask a driver library, which has C functions as attributes."""

    def call(name: str, *arguments: Any) -> None:
        status = getattr(driver, name)(*arguments)
        if status != 0:
            raise BackendError(f"the NVIDIA driver's {name} failed with status {status}")

    device, memory, attribute = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_int()
    name = ctypes.create_string_buffer(NAME_BYTES)
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), ordinal)
    call("cuDeviceGetName", name, NAME_BYTES, device)
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    version = ""
    for number in (MAJOR_ATTRIBUTE, MINOR_ATTRIBUTE):
        call("cuDeviceGetAttribute", ctypes.byref(attribute), number, device)
        version += str(attribute.value)
    return Gpu(name.value.decode(), f"sm_{version}", memory.value)
