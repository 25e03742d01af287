"""The real device, as far as a machine without a GPU can tell: its refusals, and that torch has what it calls."""

import ast
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from models.runtimes.cuda import gpu, torch_device
from models.runtimes.cuda.device import Device, DeviceError, DeviceLostError, OutOfDeviceMemoryError, copy
from models.runtimes.cuda.gpu import Gpu
from models.runtimes.cuda.tensorrt_library import Builder, Messages, TensorRT, TensorRTError, load_tensorrt
from models.runtimes.cuda.torch_device import TorchDevice, require_cuda, translated_errors
from tests.support.fakes.fake_gpu_machine import Driver

SOURCE = Path(torch_device.__file__)


def test_a_machine_without_a_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-that-is-not-there.so")
    with pytest.raises(DeviceError, match=r"no NVIDIA driver .*: install NVIDIA's driver for CUDA 13"):
        TorchDevice()


@pytest.mark.parametrize(
    ("is_built", "count", "message"),
    [
        (False, 0, r"is a build for CPUs: .* `pip install --force-reinstall torch==[0-9.]+`"),
        (True, 0, "finds no GPU, though there is"),
        (True, 2, "no GPU 2: .* has 2"),
    ],
)
def test_what_keeps_torch_from_the_gpu_is_told(monkeypatch: pytest.MonkeyPatch, is_built: bool, count: int, message: str) -> None:
    monkeypatch.setattr(torch_device, "find_gpu", lambda: gpu.read_gpu(Driver(), 0))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: is_built)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(DeviceError, match=message):
        require_cuda(2)


def test_tensorrt_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_a_gpu(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    load_tensorrt.cache_clear()
    with pytest.raises(TensorRTError, match=r"tensorrt cannot be imported .*: pip install"):
        TorchDevice()


def test_errors_of_torch_become_ours_and_ours_stay() -> None:
    with (
        pytest.raises(OutOfDeviceMemoryError, match=r"7.0 MB asked for: CUDA out of memory"),
        translated_errors("7.0 MB asked for"),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(DeviceError, match="illegal memory access"), translated_errors():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    ours = OutOfDeviceMemoryError("slots")
    with pytest.raises(OutOfDeviceMemoryError) as caught, translated_errors():
        raise ours
    assert caught.value is ours


def dotted(node: ast.expr) -> list[str]:
    """["torch", "cuda", "Stream"] of `torch.cuda.Stream`; nothing of what does not begin with a name."""
    match node:
        case ast.Name():
            return [node.id]
        case ast.Attribute() if names := dotted(node.value):
            return [*names, node.attr]
    return []


def resolve(names: list[str]) -> Any:
    found: Any = torch
    for name in names[1:]:
        found = getattr(found, name)
    return found


def test_torch_has_every_name_in_use_and_its_parameters() -> None:
    tree = ast.parse(SOURCE.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node)[:1] == ["torch"]:
            resolve(dotted(node))
    checked = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func)[:2] == ["torch", "cuda"]:
            signature = inspect.signature(resolve(dotted(node.func)))
            signature.bind(*node.args, **{keyword.arg: None for keyword in node.keywords if keyword.arg})
            checked.add(dotted(node.func)[-1])
    assert checked == {"Stream", "CUDAGraph", "graph", "device", "stream", "device_count", "mem_get_info", "synchronize"}
    assert callable(torch.cuda.CUDAGraph.replay)
    assert callable(torch.cuda.Stream.synchronize)
    assert callable(torch.cuda.Stream.wait_stream)


def test_an_error_that_stays_is_a_lost_device() -> None:
    device = TorchDevice.__new__(TorchDevice)
    device._ordinal = 3
    with mock.patch.object(torch.cuda, "synchronize") as synchronize:
        device.check()
        synchronize.side_effect = RuntimeError("CUDA error: an illegal memory access was encountered")
        with pytest.raises(DeviceLostError, match="GPU 3 was lost to this process: CUDA error: an illegal memory access"):
            device.check()
        synchronize.assert_called_with(3)


def test_its_captures_take_a_mode_that_cuda_knows() -> None:
    assert f'"{torch_device.CAPTURE_ERROR_MODE}"' in (inspect.getdoc(torch.cuda.graph) or "")


def pretend_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda as if there were a GPU: what is asked of it comes back as a list."""
    calls: list[str] = []

    class Stream:
        made = 0

        def __init__(self, device: int) -> None:
            type(self).made += 1
            self.cuda_stream = 1000 * device + self.made

        def synchronize(self) -> None:
            calls.append(f"synchronise {self.cuda_stream}")

        def wait_stream(self, other: "Stream") -> None:
            calls.append(f"{self.cuda_stream} waits for {other.cuda_stream}")

    class Graph:
        def replay(self) -> None:
            calls.append("replay")

    @contextmanager
    def on(kind: str) -> Iterator[None]:
        calls.append(f"on {kind}")
        yield
        calls.append(f"off {kind}")

    def capture(graph: Graph, stream: Stream, capture_error_mode: str) -> Any:
        assert isinstance(graph, Graph)
        return on(f"capture {stream.cuda_stream} {capture_error_mode}")

    monkeypatch.setattr(torch_device, "find_gpu", lambda _ordinal=0: Gpu("NVIDIA H100", "sm_90", 80 * 2**30))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    for name, stand_in in {
        "device_count": lambda: 2,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
        "stream": lambda stream: on(f"stream {stream.cuda_stream}"),
        "device": lambda ordinal: on(f"device {ordinal}"),
        "mem_get_info": lambda ordinal: (ordinal * 10, 100),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return calls


def test_work_goes_to_its_stream_and_graphs_are_captured_and_replayed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton has no wheels elsewhere")
    calls = pretend_a_gpu(monkeypatch)

    def load(builder: Builder) -> TensorRT:
        return TensorRT(builder, SimpleNamespace(__version__="11"), Messages(), None)

    monkeypatch.setattr(torch_device, "load_tensorrt", load)
    device: Device = TorchDevice(1)
    assert device.free_memory_bytes() == 10
    first, second = device.stream(), device.stream()
    target = torch.zeros(2)
    copy(device, target, torch.ones(2), first)
    assert target.tolist() == [1, 1]
    assert calls == ["on device 1", "on stream 1001", "off stream 1001", "off device 1"]
    calls.clear()

    def work() -> list[Tensor]:
        calls.append("work")
        return [target]

    results, graph = device.capture(work, second)
    assert results == [target]
    assert calls[2:5] == ["on capture 1002 thread_local", "work", "off capture 1002 thread_local"]
    calls.clear()
    graph.replay()
    first.wait_for(second)
    first.synchronize()
    assert calls == ["on stream 1002", "replay", "off stream 1002", "1001 waits for 1002", "synchronise 1001"]
