"""The encoder on a GPU gives what it gives on a CPU; what would not run on the GPU is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.tensorrt_profiles import Limits, speech_encoder_profiles
from export.tensorrt_speech import build_by_head_encoder
from models.bundle.plans import PlanError
from models.encoders.whisper import build_encoder
from models.protocols import BackendError, Encoder
from models.runtimes.cuda.device import DeviceError
from models.runtimes.cuda.encoder_onnx import OnnxDeviceEncoder
from models.runtimes.cuda.encoder_tensorrt import TensorRtEncoder
from models.runtimes.cuda.onnx_session import CUDA_PROVIDER, cuda_options, open_device_session, require_provider
from models.runtimes.cuda.plan import Plan
from models.runtimes.cuda.utterances import LANES
from models.runtimes.onnx.encoder import OnnxEncoder
from models.runtimes.onnx.session import open_session
from tests.support.simulated_gpu.builder import build_simulated_plan
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.tiny.tiny_whisper import MEL_BINS, POSITIONS, WIDTH, arrays_of, random_encoder

LARGEST_FRAMES = 2 * POSITIONS
MakeEncoder = Callable[[SimulatedDevice], OnnxDeviceEncoder | TensorRtEncoder]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    build_encoder(arrays_of(random_encoder(1))).save(path)
    return path


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("plan") / "encoder.onnx"
    build_by_head_encoder(arrays_of(random_encoder(1)), np.float32).save(path)
    profiles = speech_encoder_profiles(Limits(audio_frames=LARGEST_FRAMES))
    return build_simulated_plan(path, profiles).content


@pytest.fixture(scope="module")
def on_cpu(graph: Path) -> OnnxEncoder:
    return OnnxEncoder(graph, threads=1)


@pytest.fixture(scope="module", params=["onnxruntime", "tensorrt"])
def make_encoder(request: pytest.FixtureRequest, graph: Path, plan: bytes) -> MakeEncoder:
    def onnx(device: SimulatedDevice) -> OnnxDeviceEncoder:
        return OnnxDeviceEncoder(graph, device, device.stream(), largest_frames=LARGEST_FRAMES, threads=1)

    def tensorrt(device: SimulatedDevice) -> TensorRtEncoder:
        return TensorRtEncoder(Plan(device, plan, "encoder.plan"), device.stream())

    return onnx if request.param == "onnxruntime" else tensorrt


@pytest.fixture(scope="module")
def encoder(make_encoder: MakeEncoder) -> OnnxDeviceEncoder | TensorRtEncoder:
    return make_encoder(SimulatedDevice())


def features(frames: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng((seed, frames)).standard_normal((MEL_BINS, frames)).astype(np.float32)


def check(encoder: Encoder, on_cpu: OnnxEncoder, batch: list[npt.NDArray[np.float32]]) -> None:
    results = encoder.encode(batch)
    for states, expected in zip(results, on_cpu.encode(batch), strict=True):
        assert states.shape == expected.shape
        np.testing.assert_allclose(states.numpy(), expected, atol=2e-4)


@given(st.lists(st.integers(3, LARGEST_FRAMES), max_size=2 * LANES + 1), st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_states_are_those_of_the_cpu(encoder: Encoder, on_cpu: OnnxEncoder, lengths: list[int], seed: int) -> None:
    """Batches of any size, one after the other in the same memory."""
    check(encoder, on_cpu, [features(frames, seed) for frames in lengths])


def test_states_stay_when_the_next_audio_is_encoded(encoder: Encoder, on_cpu: OnnxEncoder) -> None:
    first = encoder.encode([features(40)])[0]
    encoder.encode([features(40, seed=1)] * (LANES + 1))
    np.testing.assert_allclose(first.numpy(), on_cpu.encode([features(40)])[0], atol=2e-4)


def test_one_frame_is_encoded_as_on_the_cpu(graph: Path, on_cpu: OnnxEncoder) -> None:
    device = SimulatedDevice()
    encoder = OnnxDeviceEncoder(graph, device, device.stream(), largest_frames=LARGEST_FRAMES, threads=1)
    check(encoder, on_cpu, [features(1), features(3)])


def test_audio_of_another_length_than_it_takes_is_refused(encoder: Encoder, on_cpu: OnnxEncoder) -> None:
    for frames in (0, LARGEST_FRAMES + 1):
        with pytest.raises(DeviceError, match=rf"to {LARGEST_FRAMES} frames of features \(100 a second\), not {frames}"):
            encoder.encode([features(8), features(frames)])
    check(encoder, on_cpu, [features(LARGEST_FRAMES), features(8)])


def test_a_plan_says_how_short_audio_may_be(plan: bytes) -> None:
    device = SimulatedDevice()
    encoder = TensorRtEncoder(Plan(device, plan, "encoder.plan"), device.stream())
    with pytest.raises(DeviceError, match="takes 2 to 120 frames"):
        encoder.encode([features(1)])


def test_after_a_run_that_fails_the_next_one_works(graph: Path, on_cpu: OnnxEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime refuses to write the states to memory of another shape."""
    device = SimulatedDevice()
    encoder = OnnxDeviceEncoder(graph, device, device.stream(), largest_frames=LARGEST_FRAMES, threads=1)
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "_width", WIDTH + 1)
        with pytest.raises(DeviceError, match="ONNX Runtime could not run the encoder"):
            encoder.encode([features(8), features(24)])
    check(encoder, on_cpu, [features(8), features(24)])


def test_an_encoder_for_shorter_audio_is_refused_at_the_start(graph: Path) -> None:
    device = SimulatedDevice()
    with pytest.raises(DeviceError, match="ONNX Runtime could not run the encoder"):
        OnnxDeviceEncoder(graph, device, device.stream(), largest_frames=LARGEST_FRAMES + 2, threads=1)


def test_another_plan_is_refused(graph: Path) -> None:
    device = SimulatedDevice()
    profiles = speech_encoder_profiles(Limits(audio_frames=LARGEST_FRAMES)) * 2
    content = build_simulated_plan(graph, profiles).content
    with pytest.raises(PlanError, match="not one that this release runs: it has 2 profiles"):
        TensorRtEncoder(Plan(device, content, "encoder.plan"), device.stream())


def test_a_provider_that_is_not_there_is_refused(graph: Path) -> None:
    device = SimulatedDevice()
    device.execution_provider = CUDA_PROVIDER
    with pytest.raises(DeviceError, match=r"has no CUDAExecutionProvider. Install it with `pip install -e '.\[gpu\]'`"):
        open_device_session(graph, device, device.stream(), threads=1)


def test_a_provider_that_was_not_loaded_is_refused(graph: Path) -> None:
    """The session that ONNX Runtime gives if the provider's libraries are missing: a session on the CPU."""
    with pytest.raises(DeviceError, match=r"runs encoder\.onnx by CPUExecutionProvider, not by CUDAExecutionProvider"):
        require_provider(open_session(graph, 1), CUDA_PROVIDER, graph.name)


def test_a_provider_that_leaves_nodes_to_the_cpu_is_refused(graph: Path) -> None:
    """Azure's provider is in every ONNX Runtime, and takes no node of a graph."""
    device = SimulatedDevice()
    device.execution_provider = "AzureExecutionProvider"
    with pytest.raises(DeviceError, match=r"does not take all of encoder\.onnx: it would leave Add, Attention, .* to the CPU"):
        open_device_session(graph, device, device.stream(), threads=1)


def test_a_graph_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    device = SimulatedDevice()
    (tmp_path / "encoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"encoder\.onnx could not be loaded"):
        open_device_session(tmp_path / "encoder.onnx", device, device.stream(), threads=1)


def test_cuda_gets_the_stream_that_its_work_is_to_go_to() -> None:
    device = SimulatedDevice()
    stream = device.stream()
    options = cuda_options(device, stream)
    assert options["user_compute_stream"] == str(stream.handle)
    assert options["device_id"] == "0"
