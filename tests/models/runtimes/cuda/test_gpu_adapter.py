"""The adapter on a GPU gives what it gives on a CPU, whatever the batch and whatever was in its memory before."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from export.tensorrt_profiles import Limits, adapter_profiles
from export.tensorrt_speech import build_dense_adapter
from kernels.adapter.graphs import Bucket
from models.bundle.plans import PlanError
from models.projectors.subsample import TrainedAdapter, read_adapter
from models.projectors.subsample_ctc import build_adapter
from models.protocols import Projector, ProjectorOutput
from models.runtimes.cuda.adapter_tensorrt import TensorRtAdapter
from models.runtimes.cuda.adapter_triton import TritonAdapter, buckets_up_to
from models.runtimes.cuda.device import Device, DeviceError, OutOfDeviceMemoryError, copy
from models.runtimes.cuda.plan import Plan
from models.runtimes.onnx.projector import OnnxProjector
from tests.support.simulated_gpu.builder import build_simulated_plan
from tests.support.simulated_gpu.device import SimulatedDevice
from training.adapter import Adapter as TrainableAdapter
from training.adapter import AdapterConfig

VOCABULARY, EMBEDDING_SIZE, ENCODER_WIDTH, REDUCTION = 200, 24, 16, 4
EMBEDDING = np.random.default_rng(0).standard_normal((VOCABULARY, EMBEDDING_SIZE)).astype(np.float32)
LONGEST = 40
"""Frames."""
BUCKETS = [Bucket(12, 2), Bucket(12, 4), Bucket(LONGEST, 4)]
LENGTHS = st.lists(st.integers(1, LONGEST), max_size=9)


@pytest.fixture(scope="module", params=["uniform", "stack"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedAdapter:
    torch.manual_seed(1)
    config = AdapterConfig(
        encoder_width=ENCODER_WIDTH,
        width=32,
        layers=2,
        heads=4,
        feed_forward=48,
        embedding_size=EMBEDDING_SIZE,
        subsampling=request.param,
        boundary_vectors=2,
    )
    adapter = TrainableAdapter(config).eval()
    torch.nn.init.normal_(adapter.residual.weight, std=0.2)
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_file(adapter.state_dict(), path, metadata={"config": json.dumps({**asdict(config), "blank_threshold": 0.5})})
    return read_adapter(path)


@pytest.fixture(scope="module")
def on_cpu(trained: TrainedAdapter, tmp_path_factory: pytest.TempPathFactory) -> OnnxProjector:
    graph = tmp_path_factory.mktemp("graph") / "adapter.onnx"
    build_adapter(trained, EMBEDDING).save(graph)
    return OnnxProjector(graph, EMBEDDING, trained.boundary_before, trained.boundary_after, threads=1)


@pytest.fixture(scope="module")
def plan(trained: TrainedAdapter, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    graph = tmp_path_factory.mktemp("plan") / "adapter.onnx"
    build_dense_adapter(trained, EMBEDDING, np.float32).save(graph)
    profiles = adapter_profiles(Limits(audio_frames=2 * REDUCTION * LONGEST), REDUCTION)
    return build_simulated_plan(graph, profiles).content


@pytest.fixture(scope="module")
def device() -> SimulatedDevice:
    return SimulatedDevice()


@pytest.fixture(scope="module", params=["triton", "tensorrt"])
def adapter(request: pytest.FixtureRequest, device: SimulatedDevice, trained: TrainedAdapter, plan: bytes) -> Projector:
    stream = device.stream()
    if request.param == "triton":
        return TritonAdapter(device, stream, trained, EMBEDDING, BUCKETS)
    return TensorRtAdapter(Plan(device, plan, "adapter.plan"), stream, trained, EMBEDDING)


def states(count: int) -> npt.NDArray[np.float32]:
    """Of one utterance, the same for each count: so no run meets a tie that another did not."""
    return np.random.default_rng(count).standard_normal((count, ENCODER_WIDTH)).astype(np.float32)


def uploaded(device: Device, array: npt.NDArray[np.float32]) -> Tensor:
    target, stream = device.empty(array.shape, torch.float32), device.stream()
    copy(device, target, torch.from_numpy(array), stream)
    stream.synchronize()
    return target


def check(mine: ProjectorOutput, expected: ProjectorOutput) -> None:
    arrays, expected_arrays = ({"embeddings": each.embeddings, **vars(each.require_draft())} for each in (mine, expected))
    for name, value in arrays.items():
        wanted = expected_arrays[name]
        assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), name
        if value.dtype == np.int64:
            np.testing.assert_array_equal(value, wanted, err_msg=name)
        else:
            np.testing.assert_allclose(value, wanted, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def compare(adapter: Projector, device: SimulatedDevice, on_cpu: OnnxProjector) -> Callable[[list[int]], None]:
    """Run a batch of utterances of so many frames on both."""

    def run(frames: list[int]) -> None:
        batch = [states(REDUCTION * each) for each in frames]
        results = adapter.project([uploaded(device, each) for each in batch])
        for mine, expected in zip(results, on_cpu.project(batch), strict=True):
            check(mine, expected)

    return run


def test_every_length_gives_what_it_gives_on_a_cpu(compare: Callable[[list[int]], None], on_cpu: OnnxProjector) -> None:
    compare(list(range(1, LONGEST + 1)))
    outputs = on_cpu.project([states(REDUCTION * each) for each in range(1, LONGEST + 1)])
    kept, frames = (
        sum(len(each.require_draft().kept) for each in outputs),
        sum(len(each.require_draft().best_token) for each in outputs),
    )
    assert 0 < kept < frames
    assert sum(len(each.embeddings) for each in outputs) < kept


@given(LENGTHS)
@settings(max_examples=40, deadline=None)
def test_batches_of_any_size_one_after_the_other(compare: Callable[[list[int]], None], lengths: list[int]) -> None:
    compare(lengths)


def test_silence_of_no_length_between_others(adapter: Projector, device: SimulatedDevice, on_cpu: OnnxProjector) -> None:
    nothing, something = uploaded(device, states(0)), uploaded(device, states(20))
    for batch in ([nothing], [nothing, something, nothing]):
        for given_states, output in zip(batch, adapter.project(batch), strict=True):
            if len(given_states):
                check(output, on_cpu.project([states(20)])[0])
            else:
                assert output.embeddings.shape == (0, EMBEDDING_SIZE)
                assert [
                    len(each)
                    for each in (
                        output.require_draft().best_token,
                        output.require_draft().kept,
                        output.require_draft().top_tokens,
                    )
                ] == [0, 0, 0]


def test_what_is_too_long_or_no_multiple_is_refused(
    adapter: Projector, device: SimulatedDevice, compare: Callable[[list[int]], None]
) -> None:
    with pytest.raises(DeviceError, match=r"at most \d+ (states|frames) an utterance, not"):
        adapter.project([uploaded(device, states(8)), uploaded(device, states(REDUCTION * (LONGEST + 1)))])
    with pytest.raises(ValueError, match="multiples of 4, not 7"):
        adapter.project([uploaded(device, states(7))])
    compare([LONGEST, 3])


def test_outputs_are_the_callers_own(adapter: Projector, device: SimulatedDevice, on_cpu: OnnxProjector) -> None:
    first = adapter.project([uploaded(device, states(40))])[0]
    adapter.project([uploaded(device, states(80))] * 5)
    check(first, on_cpu.project([states(40)])[0])


def test_boundary_vectors_are_those_of_the_weights(adapter: Projector, trained: TrainedAdapter) -> None:
    np.testing.assert_array_equal(adapter.boundary_before, trained.weights["boundary_before"])
    np.testing.assert_array_equal(adapter.boundary_after, trained.weights["boundary_after"])


def test_after_a_run_that_fails_the_next_one_works(
    adapter: Projector, device: SimulatedDevice, compare: Callable[[list[int]], None]
) -> None:
    with pytest.raises(DeviceError):
        adapter.project([uploaded(device, np.zeros((8, ENCODER_WIDTH + 1), np.float32))])
    compare([2, 5])


def test_a_plan_of_something_else_is_refused(device: SimulatedDevice, trained: TrainedAdapter, tmp_path: Path) -> None:
    build_adapter(trained, EMBEDDING).save(tmp_path / "adapter.onnx")
    profiles = [*adapter_profiles(Limits(audio_frames=80), REDUCTION)] * 2
    content = build_simulated_plan(tmp_path / "adapter.onnx", profiles).content
    with pytest.raises(PlanError, match="not one that this release runs"):
        TensorRtAdapter(Plan(device, content, "adapter.plan"), device.stream(), trained, EMBEDDING)


def test_a_gpu_without_room_for_the_buckets_is_an_error_that_says_so(trained: TrainedAdapter) -> None:
    device = SimulatedDevice(memory_bytes=50_000)
    with pytest.raises(OutOfDeviceMemoryError, match="MB are asked for"):
        TritonAdapter(device, device.stream(), trained, EMBEDDING, BUCKETS)


@given(st.integers(1, 2000))
def test_buckets_take_the_longest_utterance_and_four_of_them(longest: int) -> None:
    buckets = buckets_up_to(longest)
    assert buckets == sorted(buckets)
    assert min(bucket.frames for bucket in buckets if bucket.frames >= longest) < longest + 64
    assert buckets[-1].frames >= 4 * longest
    assert all(bucket.utterances for bucket in buckets)
