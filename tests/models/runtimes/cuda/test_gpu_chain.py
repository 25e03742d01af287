"""A bundle's models on a GPU are chained as on a CPU and compute the same; what is missing is said in a sentence."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.assemble import load_models
from models.bundle.io import Bundle
from models.chain import Models
from models.protocols import BackendError, PrefillRow
from models.runtimes.cuda.chain import AdapterRuntime, EncoderRuntime, load_gpu_models, longest_audio_frames
from tests.support.fakes.fake_models import speech
from tests.support.tiny.tiny_bundle import MAX_POSITIONS, with_search

pytestmark = pytest.mark.usefixtures("simulated_gpus")
OPTIONS: dict[str, Any] = {
    "gpu": 0,
    "slots": 2,
    "threads": 1,
    "encoder_runtime": "onnxruntime",
    "adapter_runtime": "triton",
    "tensorrt_library": "tensorrt",
}


@pytest.fixture(scope="module")
def on_cpu(bundle: Bundle) -> Models:
    return load_models(bundle, slots=2, threads=1)


@pytest.mark.parametrize("encoder_runtime", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("adapter_runtime", ["triton", "tensorrt"])
def test_each_choice_of_runtimes_gives_what_the_cpu_gives(
    bundle: Bundle, on_cpu: Models, encoder_runtime: EncoderRuntime, adapter_runtime: AdapterRuntime
) -> None:
    models = load_gpu_models(bundle, **{**OPTIONS, "encoder_runtime": encoder_runtime, "adapter_runtime": adapter_runtime})
    features = [models.features(speech(seed, duration_s)) for seed, duration_s in enumerate((0.4, 3.0, 0.1))]
    outputs = models.projector.project(models.encoder.encode(features))
    for mine, expected in zip(outputs, on_cpu.projector.project(on_cpu.encoder.encode(features)), strict=True):
        np.testing.assert_array_equal(mine.require_draft().best_token, expected.require_draft().best_token)
        # The CPU's graph has the LLM's table in float32, the bundle has it in float16.
        np.testing.assert_allclose(mine.embeddings, expected.embeddings, atol=2e-2)
    longest = outputs[1].embeddings
    assert len(longest)
    row = PrefillRow(1, 0, np.concatenate([models.require_llm().embed([1, 2, 3]), longest]))
    np.testing.assert_allclose(models.require_llm().prefill([row])[0], on_cpu.require_llm().prefill([row])[0], atol=1e-3)


@pytest.mark.parametrize("adapter_runtime", ["triton", "tensorrt"])
def test_a_search_finds_what_the_cpu_finds(bundle: Bundle, adapter_runtime: AdapterRuntime) -> None:
    searched = with_search(bundle)
    on_cpu = load_models(searched, slots=2, threads=1)
    models = load_gpu_models(searched, **{**OPTIONS, "encoder_runtime": "tensorrt", "adapter_runtime": adapter_runtime})
    features = [models.features(speech(seed, duration_s)) for seed, duration_s in enumerate((4.0, 20.0, 0.1))]
    outputs = models.projector.project(models.encoder.encode(features))
    for mine, expected in zip(outputs, on_cpu.projector.project(on_cpu.encoder.encode(features)), strict=True):
        np.testing.assert_array_equal(mine.embeddings, expected.embeddings)
        np.testing.assert_array_equal(mine.require_draft().best_token, expected.require_draft().best_token)
    assert any(len(output.embeddings) > 1 for output in outputs)


def test_the_chain_is_the_bundles(bundle: Bundle, on_cpu: Models) -> None:
    models = load_gpu_models(bundle, **OPTIONS)
    for name in ("features", "template", "frame_s", "boundary_instructions", "transcription_instruction"):
        assert getattr(models, name) == getattr(on_cpu, name)
    instruction = models.transcription_instruction
    for mine, expected in zip(models.boundaries(instruction), on_cpu.boundaries(instruction), strict=True):
        assert len(mine)
        np.testing.assert_array_equal(mine, expected)
    assert models.require_llm().max_positions == MAX_POSITIONS - 1
    assert models.encodes_beside


@pytest.mark.parametrize("part", ["encoder", "adapter", "llm"])
def test_a_plan_that_is_missing_is_named_with_the_command_that_builds_it(bundle: Bundle, part: str) -> None:
    others = tuple(plan for plan in bundle.manifest.plans if plan.part != part)
    lacking = Bundle(bundle.folder, bundle.manifest.model_copy(update={"plans": others}))
    with pytest.raises(
        BackendError, match=rf"no plan of {part} for tensorrt simulated-1 .*`python -m export\.tensorrt_plans .*{part}"
    ):
        load_gpu_models(lacking, **{**OPTIONS, "encoder_runtime": "tensorrt", "adapter_runtime": "tensorrt"})


def test_longer_slots_than_any_plan_has_are_refused_with_the_command_that_builds_them(bundle: Bundle) -> None:
    assert load_gpu_models(bundle, **OPTIONS, positions=MAX_POSITIONS // 2).require_llm().max_positions == MAX_POSITIONS - 1
    with pytest.raises(BackendError, match=rf"at most {MAX_POSITIONS} positions.*--positions {2 * MAX_POSITIONS}"):
        load_gpu_models(bundle, **OPTIONS, positions=2 * MAX_POSITIONS)


def test_weights_that_cannot_be_read_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    copied = Bundle(shutil.copytree(bundle.folder, tmp_path / "tiny"), bundle.manifest)
    copied.path(bundle.manifest.require_projector().require_weights()).write_bytes(b"none")
    with pytest.raises(BackendError, match=r"adapter\.safetensors could not be loaded"):
        load_gpu_models(copied, **OPTIONS)
    with pytest.raises(BackendError, match=r"adapter\.safetensors could not be loaded"):
        load_models(copied, slots=1, threads=1)


def test_an_encoder_for_cpus_is_refused_on_a_gpu(bundle: Bundle) -> None:
    encoder = bundle.manifest.encoder.model_copy(update={"precision": "int8"})
    quantised = Bundle(bundle.folder, bundle.manifest.model_copy(update={"encoder": encoder}))
    with pytest.raises(BackendError, match=r"in int8, .*`python -m export\.default_bundle --precision fp32`"):
        load_gpu_models(quantised, **OPTIONS)


def test_the_longest_audio_is_counted_in_frames(bundle: Bundle) -> None:
    assert longest_audio_frames(bundle.manifest) == 375
    assert longest_audio_frames(bundle.manifest.model_copy(update={"max_audio_s": 30.01})) == 376
