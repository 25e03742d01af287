"""Which GPU is in the machine, asked of the driver itself: no CUDA library has to be installed."""

import ctypes
from dataclasses import dataclass
from typing import Any

from models.protocols import BackendError

DRIVER = "libcuda.so.1"
MAJOR_ATTRIBUTE, MINOR_ATTRIBUTE = 75, 76
NAME_BYTES = 256
CPU_ONLY_PRECISION = "int8"
"""Of an encoder's graph: ONNX Runtime has such products for CPUs only."""
ALIGNMENT_BYTES = 256
"""Addresses of device memory are multiples of this; TensorRT requires it of the tensors that are bound."""


@dataclass(frozen=True)
class Gpu:
    """`architecture` is what plans and kernels are compiled for, such as `sm_90`."""

    name: str
    architecture: str
    memory_bytes: int


def aligned(size_bytes: int) -> int:
    """Return a size rounded up to where the next allocation can begin."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def load_driver() -> Any:
    """Return the driver's library, which has C functions as attributes. Raises `BackendError` where there is none."""
    try:
        return ctypes.CDLL(DRIVER)
    except OSError as error:
        raise BackendError(f"this machine has no NVIDIA driver ({error})") from error


def find_gpu(ordinal: int = 0) -> Gpu:
    """Return the GPU of that number. Raises `BackendError` where there is no driver or no such GPU."""
    return read_gpu(load_driver(), ordinal)


def read_gpu(driver: Any, ordinal: int) -> Gpu:
    """Ask a driver library. Raises `BackendError`."""
    device, memory, attribute = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_int()
    name = ctypes.create_string_buffer(NAME_BYTES)
    count = gpu_count(driver)
    if ordinal >= count:
        raise BackendError(f"there is no GPU {ordinal}: the NVIDIA driver shows {count}, numbered from 0")
    _call(driver, "cuDeviceGet", ctypes.byref(device), ordinal)
    _call(driver, "cuDeviceGetName", name, NAME_BYTES, device)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    version = ""
    for number in (MAJOR_ATTRIBUTE, MINOR_ATTRIBUTE):
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(attribute), number, device)
        version += str(attribute.value)
    return Gpu(name.value.decode(), f"sm_{version}", memory.value)


def gpu_count(driver: Any) -> int:
    """Return how many GPUs it shows to this process. Raises `BackendError`."""
    count = ctypes.c_int()
    _call(driver, "cuInit", 0)
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    return count.value


def cuda_version(driver: Any) -> tuple[int, int]:
    """Return the newest CUDA that the driver serves, such as (13, 1). Raises `BackendError`."""
    version = ctypes.c_int()
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def _call(driver: Any, name: str, *arguments: Any) -> None:
    status = getattr(driver, name)(*arguments)
    if status != 0:
        words = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(words))
        meaning = (words.value or b"which it does not know").decode()
        raise BackendError(f"the NVIDIA driver's {name} failed with status {status} ({meaning})")
