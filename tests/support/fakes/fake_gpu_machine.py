"""A machine with GPUs, as its driver and its Python packages tell of it; nothing computes there."""

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.runtimes.cuda import gpu
from models.runtimes.cuda.tensorrt_library import load_tensorrt
from server.doctor import gpu as doctor_gpu


@dataclass
class Driver:
    """Answers as the driver of H100s does; `fails` is the function that returns an error."""

    fails: str = ""
    version: int = 13010
    count: int = 1
    architecture: tuple[int, int] = (9, 0)
    memory_bytes: int = 80 * 2**30

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            match name, arguments:
                case "cuDriverGetVersion", (version,):
                    version._obj.value = self.version
                case "cuGetErrorString", (100, words):
                    words._obj.value = b"no CUDA-capable device is detected"
                case "cuDeviceGetCount", (count,):
                    count._obj.value = self.count
                case "cuDeviceGetName", (buffer, size, _):
                    assert size == ctypes.sizeof(buffer)
                    buffer.value = b"NVIDIA H100 80GB HBM3"
                case "cuDeviceTotalMem_v2", (memory, _):
                    memory._obj.value = self.memory_bytes
                case "cuDeviceGetAttribute", (attribute, number, _):
                    attribute._obj.value = self.architecture[{75: 0, 76: 1}[number]]
            return 100 if name == self.fails else 0

        return function


class Session:
    """ONNX Runtime's, for a convolution that is squared. `providers` are those that it took, whatever it was asked for."""

    def __init__(self, providers: Sequence[str], error: Exception | None, factor: float) -> None:
        self._providers, self._error, self._factor = providers, error, factor

    def get_providers(self) -> Sequence[str]:
        return self._providers

    def run(self, _outputs: None, inputs: dict[str, Any]) -> list[Any]:
        if self._error:
            raise self._error
        convolved = inputs["filters"][:, :, 0] @ inputs["audio"]
        return [convolved @ convolved * np.float32(self._factor)]


class Attention:
    """TensorRT 11's, as far as it is asked about."""

    key_value_lengths = None


@dataclass
class GpuMachine:
    """Everything is right with it until something is set otherwise; `install` puts it in the place of this machine."""

    driver: Driver | None = field(default_factory=Driver)
    cuda: str | None = "13.0"
    torch_sees: int = 1
    packages: dict[str, str] = field(default_factory=lambda: {"onnxruntime-gpu": "1.31.1"})
    available: Sequence[str] = ("CUDAExecutionProvider", "CPUExecutionProvider")
    taken: Sequence[str] = ("CUDAExecutionProvider", "CPUExecutionProvider")
    error: Exception | None = None
    factor: float = 1.0
    triton: str = "3.7.1"
    triton_error: Exception | None = None
    missing: Sequence[str] = ()
    attention: type = Attention

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(name: str) -> Driver:
            if self.driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return self.driver

        monkeypatch.setattr(gpu, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": load}))
        monkeypatch.setattr(doctor_gpu, "_version", self.packages.get)
        load_tensorrt.cache_clear()
        for name, module in self._modules().items():
            # None in its place makes an import fail.
            monkeypatch.setitem(sys.modules, name, None if name in self.missing else module)

    def get_current_target(self) -> None:
        """Triton's active driver's."""
        if self.triton_error:
            raise self.triton_error

    def _modules(self) -> dict[str, Any]:
        seen = SimpleNamespace(is_available=lambda: self.torch_sees > 0, device_count=lambda: self.torch_sees)
        return {
            "torch": SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda=self.cuda), cuda=seen),
            "triton": SimpleNamespace(__version__=self.triton, runtime=SimpleNamespace(driver=SimpleNamespace(active=self))),
            "tensorrt": SimpleNamespace(__version__="11.4.0.106", IAttention=self.attention, ILogger=object),
            "onnxruntime": SimpleNamespace(
                __version__="1.31.1",
                get_available_providers=lambda: self.available,
                InferenceSession=lambda _graph, **_options: Session(self.taken, self.error, self.factor),
            ),
        }
