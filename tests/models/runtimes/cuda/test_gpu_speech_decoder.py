"""Beside a GPU the speech decoder runs on the CPU: the same transcripts and answers, from states that lie on the device."""

from collections.abc import Iterator

import numpy as np
import pytest

from models.assemble import load_models
from models.bundle.io import Bundle
from models.chain import Models
from models.protocols import Float32, PrefillRow
from models.runtimes.cuda.chain import load_gpu_models
from server.engine.engine import LocalEngine
from tests.server.engine.test_transcripts import SLOTS, answers, noise, once  # noqa: F401, a fixture
from tests.support.tiny.tiny_bundle import add_simulated_plans, write_transcribing_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("transcribing") / "bundle"
    return add_simulated_plans(folder, write_transcribing_bundle(folder))


@pytest.fixture(scope="module")
def on_cpu(bundle: Bundle) -> Models:
    return load_models(bundle, slots=SLOTS, threads=1)


def load_on_gpu(bundle: Bundle) -> Models:
    return load_gpu_models(
        bundle,
        gpu=0,
        slots=SLOTS,
        threads=1,
        encoder_runtime="onnxruntime",
        adapter_runtime="triton",
        tensorrt_library="tensorrt",
    )


@pytest.fixture
def on_gpu(bundle: Bundle, simulated_gpus: None) -> Models:  # noqa: ARG001
    return load_on_gpu(bundle)


@pytest.fixture
def engine(on_gpu: Models) -> Iterator[LocalEngine]:
    engine = LocalEngine(on_gpu, 16_000, 30.0, queue_limit=32)
    engine.start()
    yield engine
    engine.drain(5.0)


def logits(models: Models, audio: Float32, slot: int) -> Float32:
    """Encode audio, project it, and have the speech decoder begin a transcript of it."""
    states = models.encoder.encode([models.features(models.pad_audio(audio))])
    (output,) = models.project(states, [len(audio)])
    decoder = models.require_speech().decoder
    decoder.write_memory(slot, output.states)
    (rows,) = decoder.prefill([PrefillRow(slot, 0, decoder.embed([5, 6, 7]), 3)])
    return rows


def test_the_decoder_attends_to_states_on_the_device(on_cpu: Models, on_gpu: Models) -> None:
    for slot, seconds in enumerate((3.0, 0.5, 1.9)):
        audio = noise(slot, seconds)
        np.testing.assert_allclose(logits(on_gpu, audio, slot), logits(on_cpu, audio, slot), atol=1e-3)


def test_more_states_than_a_slot_holds_are_refused(on_gpu: Models) -> None:
    states = on_gpu.encoder.encode([on_gpu.features(noise(0, 30.0))])
    decoder = on_gpu.require_speech().decoder
    with pytest.raises(ValueError, match="a slot holds 1 to"):
        decoder.write_memory(0, states[0].repeat(2, 1))


@pytest.mark.usefixtures("once")
def test_the_engine_answers_as_on_the_cpu(engine: LocalEngine, on_cpu: Models) -> None:
    expected_engine = LocalEngine(on_cpu, 16_000, 30.0, queue_limit=32)
    expected_engine.start()
    try:
        expected = answers(expected_engine, 0)
    finally:
        expected_engine.drain(5.0)
    assert any(text for text, _, _ in expected)
    assert answers(engine, 0) == expected
