"""The simulated GPU does nothing before it is waited for, holds no more than its memory, and replays what was captured."""

import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.runtimes.cuda.device import Device, DeviceError, OutOfDeviceMemoryError, Stream, copy
from models.runtimes.cuda.gpu import ALIGNMENT_BYTES
from tests.support.simulated_gpu.device import SimulatedDevice

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


@pytest.fixture
def device() -> Device:
    return SimulatedDevice(memory_bytes=2**20)


def launch(device: Device, stream: Stream, action: Callable[..., object], *arguments: object) -> None:
    def work() -> None:
        action(*arguments)

    device.launch(work, stream)


def is_poison(tensor: Tensor) -> bool:
    if tensor.is_floating_point():
        return bool(tensor.isnan().all())
    return bool((tensor == (True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)).all())


@given(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES))
def test_memory_is_aligned_contiguous_and_poisoned(shape: list[int], dtype: torch.dtype) -> None:
    device = SimulatedDevice(memory_bytes=2**20)
    for tensor in (device.empty(shape, dtype), device.staging(shape, dtype)):
        assert (tensor.dtype, list(tensor.shape), tensor.is_contiguous()) == (dtype, shape, True)
        assert is_poison(tensor)
    assert device.empty(shape, dtype).data_ptr() % ALIGNMENT_BYTES == 0


def test_memory_is_bounded_and_comes_back_with_the_last_view(device: Device) -> None:
    half = device.empty((2**17,), torch.float32)
    assert device.free_memory_bytes() == 2**19
    device.staging((2**20,), torch.float32)
    with pytest.raises(OutOfDeviceMemoryError, match=r"simulated GPU 0 has 0\.5 of 1\.0 MB free, and 0\.8 MB are asked for"):
        device.empty((200_000,), torch.float32)
    view = half[5:7].view(torch.int32)
    del half
    assert device.free_memory_bytes() == 2**19
    del view
    assert device.free_memory_bytes() == 2**20


def test_memory_has_to_be_kept_until_the_work_that_uses_it_is_done(device: Device) -> None:
    stream, kept, view = device.stream(), device.empty((2, 10), torch.float32), device.empty((9,), torch.float32)[3:]
    launch(device, stream, kept[1].zero_)
    stream.synchronize()
    launch(device, stream, view.zero_)
    del view
    with pytest.raises(DeviceError, match="let go before the work that uses it was done: keep it until then"):
        stream.synchronize()


def test_work_is_done_in_order_when_it_is_waited_for_and_not_before(device: Device) -> None:
    stream, done = device.stream(), list[int]()
    for number in range(3):
        launch(device, stream, done.append, number)
    assert done == []
    stream.synchronize()
    assert done == [0, 1, 2]
    stream.synchronize()
    assert done == [0, 1, 2]


def test_without_synchronising_the_host_reads_what_was_there(device: Device) -> None:
    stream = device.stream()
    staged, on_device, back = (make((4,), torch.float32) for make in (device.staging, device.empty, device.staging))
    staged.copy_(torch.arange(4.0))
    copy(device, on_device, staged, stream)
    copy(device, back, on_device, stream)
    assert is_poison(back)
    staged.fill_(7)  # too early: the copy has not read it yet
    stream.synchronize()
    assert back.tolist() == [7, 7, 7, 7]


def test_a_stream_that_waits_for_another_reads_what_it_had_queued_by_then(device: Device) -> None:
    first, second = device.stream(), device.stream()
    source, seen = torch.zeros(1), torch.zeros(3)
    launch(device, first, source.fill_, 1)
    copy(device, seen[:1], source, second)
    second.wait_for(first)
    launch(device, first, source.fill_, 2)
    copy(device, seen[1:2], source, second)
    second.synchronize()
    assert seen.tolist() == [0, 1, 0]
    first.synchronize()
    copy(device, seen[2:], source, second)
    second.synchronize()
    assert seen.tolist() == [0, 1, 2]


def test_streams_that_wait_for_each_other_in_turn_do_not_hang(device: Device) -> None:
    first, second, done = device.stream(), device.stream(), list[str]()
    launch(device, first, done.append, "a")
    second.wait_for(first)
    launch(device, second, done.append, "b")
    first.wait_for(second)
    launch(device, first, done.append, "c")
    threads = [threading.Thread(target=stream.synchronize) for stream in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == ["a", "b", "c"]


def test_a_failure_drops_what_is_behind_it_is_told_once_and_reaches_who_waits(device: Device) -> None:
    first, second, done = device.stream(), device.stream(), list[str]()

    def fail() -> None:
        raise ValueError("no such row")

    launch(device, first, done.append, "before")
    launch(device, first, fail)
    launch(device, first, done.append, "behind")
    second.wait_for(first)
    launch(device, second, done.append, "waiting")
    for stream in (second, first):
        with pytest.raises(DeviceError, match="work on the GPU failed: ValueError: no such row"):
            stream.synchronize()
    assert done == ["before"]
    launch(device, first, done.append, "after")
    first.synchronize()
    second.synchronize()
    assert done == ["before", "after"]


def test_a_captured_launch_runs_with_each_replay_in_its_order_only(device: Device) -> None:
    stream, other = device.stream(), device.stream()
    source, total = torch.ones(1), torch.zeros(1)

    def work() -> list[Tensor]:
        launch(device, stream, total.add_, source)
        with pytest.raises(DeviceError, match="while a graph is captured"):
            stream.synchronize()
        with pytest.raises(DeviceError, match="while a graph is captured"):
            other.wait_for(stream)
        return [total]

    (result,), graph = device.capture(work, stream)
    stream.synchronize()
    assert result is total
    assert total.item() == 0
    launch(device, stream, source.fill_, 10)
    graph.replay()
    graph.replay()
    assert total.item() == 0
    stream.synchronize()
    assert total.item() == 20


def test_captured_work_without_launches_is_repeated_into_the_first_results(device: Device) -> None:
    stream, source = device.stream(), torch.ones(3)
    results, graph = device.capture(lambda: [source * 2, source.sum()[None]], stream)
    assert all(map(is_poison, results))
    source.fill_(5)
    graph.replay()
    assert all(map(is_poison, results))
    stream.synchronize()
    assert [each.tolist() for each in results] == [[10, 10, 10], [15]]


def test_captured_work_that_launches_and_computes_beside_it_is_refused(device: Device) -> None:
    stream, total = device.stream(), torch.ones(3)

    def work() -> list[Tensor]:
        launch(device, stream, total[1:].view(1, 2).zero_)
        return [total * 2]

    with pytest.raises(DeviceError, match=r"has to be launched, or nothing: aten\.mul\.Tensor would not be"):
        device.capture(work, stream)
