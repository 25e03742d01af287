"""FastConformer gives the states of transformers' ParakeetEncoder, and NeMo's features those of its extractor."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from export.checkpoints.safetensors_file import read_folder
from models.encoders.fast_conformer import FastConformerConfig, build_encoder
from models.features.nemo_mel import NemoMel
from models.runtimes.onnx.encoder import OnnxEncoder
from tests.support.tiny.tiny_speech_llms import nemo_names, new_fast_conformer

BINS, LONGEST = 24, 20


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "scaled"])
def encoders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, OnnxEncoder]]:
    """The reference, and ours; one of the two scales what enters its layers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("encoder")
    reference = new_fast_conformer(BINS, scaled=request.param)
    save_file(nemo_names(reference), folder / "model.safetensors")
    shape = FastConformerConfig(layers=3, heads=2, longest=LONGEST, scale=32**0.5 if request.param else 1.0)
    build_encoder(shape, BINS, read_folder(folder)).save(folder / "encoder.onnx")
    yield reference, OnnxEncoder(folder / "encoder.onnx", threads=1)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("frames", [2, 8, 9, 16, 57, 160])
def test_states_are_those_of_the_reference(encoders: tuple[Any, OnnxEncoder], frames: int) -> None:
    reference, ours = encoders
    features = np.random.default_rng(frames).standard_normal((BINS, frames)).astype(np.float32)
    with torch.inference_mode():
        expected = reference(torch.from_numpy(features.T[None])).last_hidden_state[0].numpy()
    (states,) = ours.encode([features])
    assert states.shape == expected.shape
    np.testing.assert_allclose(states, expected, atol=2e-5)


@pytest.mark.parametrize("samples", [1_280, 16_000, 16_159, 33_333])
@pytest.mark.parametrize("bins", [80, 128])
def test_features_are_those_of_the_reference(samples: int, bins: int) -> None:
    audio = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    given = transformers.ParakeetFeatureExtractor(feature_size=bins)(audio, sampling_rate=16_000, return_tensors="np")
    expected = given.input_features[0][given.attention_mask[0].astype(bool)].T
    features = NemoMel(bins)(audio)
    assert features.shape == expected.shape
    np.testing.assert_allclose(features, expected, atol=2e-4)


def test_silence_has_features() -> None:
    assert np.isfinite(NemoMel(128)(np.zeros(16_000, np.float32))).all()
