"""Plans, built for real and without a GPU, are what they should be: a fused attention in every layer, few kernels around it."""

import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from export import tensorrt_build
from export.default_recipe import DEFAULT_RECIPE
from export.tensorrt_build import Profile, build_plan, make_monitor, require_room
from export.tensorrt_inspect import PlanReport, ProfileReport, inspect_plan
from export.tensorrt_parts import Part, llm_part
from export.tensorrt_plans import build_part
from export.tensorrt_profiles import (
    Limits,
    adapter_profiles,
    decoder_profiles,
    speech_encoder_profiles,
)
from export.tensorrt_speech import build_by_head_encoder, build_dense_adapter
from export.tensorrt_weights import WEIGHT_FORMATS
from models.graph.linear import INT8, block_linear
from models.graph.writer import BFLOAT16, GraphBuilder
from models.llms.llama import build_decoder
from models.projectors.subsample import read_adapter
from models.runtimes.cuda.tensorrt_library import Messages, TensorRT, TensorRTError, load_tensorrt
from tests.support.tiny.random_llama import QWEN2_500M, SMOLLM2_135M, random_llama
from tests.support.tiny.tiny_llama import tiny_llama
from tests.support.tiny.tiny_whisper import arrays_of, random_encoder

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX has no package for this processor")

GPU = "sm_80"
LIMITS = Limits(decode_rows=8, prefill_rows=2, prefill_tokens=64, wanted=16)
DECODE_KERNELS, PREFILL_KERNELS = 9, 12
"""A layer's: norm, query-key-value, rotation and slots, attention, output, norm, gate and up, gating, down; in a prefill the
heads are put in order around the attention."""
ONCE_DECODE, ONCE_PREFILL = 5, 14
"""Around all layers: embeddings, lengths, logits."""


def build(graph: GraphBuilder, profiles: Sequence[Profile], folder: Path, gpu: str = GPU) -> PlanReport:
    graph.save(folder / "graph.onnx")
    library = load_tensorrt("tensorrt_rtx")
    report = inspect_plan(library, build_plan(library, folder / "graph.onnx", profiles, gpu=gpu).content)
    assert report.plan_bytes > report.weight_bytes > 0
    return report


def build_llm(part: Part, folder: Path) -> PlanReport:
    library = load_tensorrt("tensorrt_rtx")
    return inspect_plan(library, build_part(library, part, GPU, folder).content)


def assert_lean(report: PlanReport, layers: int, decode_kernels: int = DECODE_KERNELS) -> None:
    """A decoder's plan: attention fused in every layer of both profiles, and no more kernels than there should be."""
    decode, prefill = report.profiles
    assert len(decode.attentions) == len(prefill.attentions) == layers
    assert decode.kernels <= layers * decode_kernels + ONCE_DECODE
    assert prefill.kernels <= layers * PREFILL_KERNELS + ONCE_PREFILL
    assert decode.kernels_per_layer() <= decode_kernels
    assert prefill.kernels_per_layer() <= PREFILL_KERNELS
    assert decode.waits == prefill.waits == 0


@pytest.mark.parametrize("gpu", ["sm_80", "sm_89", "sm_120"])
def test_a_decoder_is_lean_on_every_kind_of_gpu(tmp_path: Path, gpu: str) -> None:
    model = random_llama(SMOLLM2_135M, layers=3)
    report = build(build_decoder(model, max_positions=256, float_type=BFLOAT16), decoder_profiles(LIMITS), tmp_path, gpu)
    assert_lean(report, 3)


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.6), ("int4", 0.45), ("fp8", 0.6)])
def test_quantised_products_are_as_lean_and_their_weights_smaller(tmp_path: Path, precision: str, share: float) -> None:
    model = random_llama(replace(SMOLLM2_135M, vocabulary_size=512), layers=3)
    reports = []
    for linear in (WEIGHT_FORMATS["bf16"], WEIGHT_FORMATS[precision]):
        graph = build_decoder(model, max_positions=256, body=linear, float_type=BFLOAT16)
        reports.append(build(graph, decoder_profiles(LIMITS), tmp_path, "sm_89"))
    plain, small = reports
    # Blocks of 4 bits take one copy more, of what attention gives.
    assert_lean(small, 3, decode_kernels=DECODE_KERNELS + (precision == "int4"))
    assert small.weight_bytes < share * plain.weight_bytes


def test_a_part_of_smollm2_135m_is_lean_and_its_weights_are_stored_once(tmp_path: Path) -> None:
    layers, parameters_per_layer, shared_parameters = 6, 3_540_096, 28_312_128
    part = llm_part(partial(random_llama, SMOLLM2_135M, layers=layers), "bf16", 1024, Limits())
    report = build_llm(part, tmp_path)
    assert_lean(report, layers)
    parameters = shared_parameters + layers * parameters_per_layer
    assert report.weight_bytes < 1.01 * 2 * parameters
    assert report.plan_bytes < 1.1 * report.weight_bytes


def test_qwen2_with_shared_heads_and_biases_is_lean(tmp_path: Path) -> None:
    model = random_llama(replace(QWEN2_500M, vocabulary_size=512), layers=2, query_bias=True)
    assert_lean(build(build_decoder(model, max_positions=256, float_type=BFLOAT16), decoder_profiles(LIMITS), tmp_path), 2)


def test_encoder_and_adapter_fuse_every_attention(tmp_path: Path) -> None:
    encoder = build_by_head_encoder(arrays_of(random_encoder(0)), BFLOAT16)
    report = build(encoder, speech_encoder_profiles(Limits(audio_frames=120)), tmp_path)
    assert len(report.profiles[0].attentions) == 2
    trained = read_adapter(DEFAULT_RECIPE.adapter)
    embedding = np.ones((512, trained.config["embedding_size"]), np.float32)
    adapter = build_dense_adapter(trained, embedding, BFLOAT16)
    report = build(adapter, adapter_profiles(LIMITS, 4), tmp_path)
    assert len(report.profiles[0].attentions) == 3
    assert report.profiles[0].kernels_per_layer() <= DECODE_KERNELS


def test_what_cannot_be_built_is_refused_with_the_reason(tmp_path: Path) -> None:
    graph = build_decoder(tiny_llama()[0], max_positions=64, float_type=BFLOAT16)
    profiles = decoder_profiles(LIMITS)
    with pytest.raises(TensorRTError, match="does not compile for sm_90, only for sm_75, sm_80"):
        build(graph, profiles, tmp_path, "sm_90")
    with pytest.raises(TensorRTError, match="gives no range for wanted"):
        build(graph, [{"rows": (1, 1, 1), "tokens": (1, 1, 1)}], tmp_path)
    fp8 = build_decoder(tiny_llama()[0], max_positions=64, body=WEIGHT_FORMATS["fp8"], float_type=BFLOAT16)
    with pytest.raises(TensorRTError, match=r"could not build graph\.onnx for sm_80: .+"):
        build(fp8, profiles, tmp_path)
    for_cpu = build_decoder(tiny_llama()[0], max_positions=64, body=block_linear(INT8))
    with pytest.raises(TensorRTError, match=r"cannot read graph\.onnx: .+"):
        build(for_cpu, profiles, tmp_path)


def test_attention_that_would_not_be_fused_fails_the_build(tmp_path: Path) -> None:
    graph = build_decoder(tiny_llama()[0], max_positions=64, float_type=np.float32)
    with pytest.raises(TensorRTError, match="not supported by a dedicated kernel"):
        build(graph, decoder_profiles(LIMITS), tmp_path)


def test_a_build_that_the_machine_has_no_room_for_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_room(10**6, tmp_path)
    monkeypatch.setattr(tensorrt_build, "available_memory_bytes", lambda: 10**20)
    with pytest.raises(TensorRTError, match="GB free and the plan needs"):
        require_room(10**18, tmp_path)
    monkeypatch.setattr(tensorrt_build, "available_memory_bytes", lambda: 2 * 10**9)
    with pytest.raises(TensorRTError, match=r"needs 5\.1 GB of memory and 2\.0 GB are available"):
        require_room(10**9, tmp_path)


def test_the_bar_follows_the_outermost_phase_and_is_gone_at_its_end() -> None:
    monitor = make_monitor(load_tensorrt("tensorrt_rtx"))
    monitor.phase_start("building", None, 3)
    monitor.phase_start("timing", "building", 9)
    assert monitor.step_complete("timing", 8)
    assert monitor.bar.n == 0
    assert monitor.bar.postfix == "timing"
    monitor.phase_finish("timing")
    assert monitor.step_complete("building", 1)
    assert (monitor.bar.n, monitor.bar.total) == (2, 3)
    monitor.phase_finish("building")
    assert monitor.bar is None


class Inspected:
    """A library that has built and logged no list of kernels, but gives one by its engine's inspector."""

    IBuilderConfig = object
    LayerInformationFormat = SimpleNamespace(ONELINE="oneline")

    def __init__(self, listed: str) -> None:
        engine = SimpleNamespace(create_engine_inspector=lambda: SimpleNamespace(get_engine_information={"oneline": listed}.get))
        self.Runtime = lambda _: SimpleNamespace(deserialize_cuda_engine={b"plan": engine}.get)


def inspected(listed: str) -> TensorRT:
    return TensorRT("tensorrt", Inspected(listed), Messages([("INFO", "Total Activation Memory: 8 bytes")]), None)


def test_kernels_that_are_not_in_the_log_are_asked_of_the_engine() -> None:
    entries = ["__mye1_myl0_0, LayerType: shape_call", "MatMul_0_myl0_1, LayerType: gemm", "_gemm_mha_v2_myl0_2, LayerType: kgen"]
    report = inspect_plan(inspected("Layers:\n" + "\n".join(f"Name: {each}, Inputs: []" for each in entries)), b"plan")
    assert report.profiles == (ProfileReport(kernels=2, attentions=(1,), waits=0, activation_bytes=8),)


def test_a_list_that_cannot_be_read_is_no_plan_without_kernels() -> None:
    with pytest.raises(TensorRTError, match="no list of kernels"):
        inspect_plan(inspected(""), b"plan")
    with pytest.raises(TensorRTError, match="unheard_of does not say which profile"):
        inspect_plan(inspected("Layers:\nName: unheard_of, LayerType: gemm, Inputs: []"), b"plan")
    with pytest.raises(TensorRTError, match="cannot be loaded"):
        inspect_plan(inspected(""), b"other")


def test_a_library_that_is_missing_or_old_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TensorRTError, match=r"tensorrt cannot be imported .*: pip install -e '\.\[gpu\]'"):
        load_tensorrt.__wrapped__("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(IAttention=object, __version__="10.16"))
    with pytest.raises(TensorRTError, match=r"tensorrt 10\.16 cannot tell attention .* takes TensorRT 11"):
        load_tensorrt.__wrapped__("tensorrt")
