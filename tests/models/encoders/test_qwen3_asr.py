"""Qwen3-ASR's front end and encoder give the numbers of transformers: chunks, windows, and audio that fills neither."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from export.checkpoints.qwen3_asr import read_encoder
from export.checkpoints.safetensors_file import read_folder
from models.encoders.qwen3_asr import build_encoder
from models.encoders.whisper import rotated_encoder
from models.features.log_mel import WholeFrames
from models.runtimes.onnx.encoder import OnnxEncoder
from tests.support.tiny.tiny_checkpoints import spread_weights

CONFIG: dict[str, Any] = {
    "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "d_model": 32,
    "downsample_hidden_size": 4, "n_window": 50, "n_window_infer": 200, "output_dim": 24,
}  # fmt: skip


class Encoders:
    """The reference, and ours: plain and with rotated weights."""

    def __init__(self, folder: Path) -> None:
        from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig
        from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder

        torch.manual_seed(1)
        self.reference: Any = Qwen3ASREncoder(Qwen3ASREncoderConfig(**CONFIG)).eval()
        spread_weights(self.reference, 0.15)
        save_file(self.reference.state_dict(), folder / "model.safetensors")
        arrays = read_encoder(read_folder(folder), CONFIG, "it")
        self.ours = []
        for name, each in (("plain", arrays), ("rotated", rotated_encoder(arrays))):
            build_encoder(each, chunk=100, chunks=2).save(folder / f"{name}.onnx")
            self.ours.append(OnnxEncoder(folder / f"{name}.onnx", threads=1))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoders]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Encoders(tmp_path_factory.mktemp("encoder"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("frames", [1, 50, 99, 100, 101, 200, 201, 399, 400, 537])
def test_states_are_those_of_the_reference(encoders: Encoders, frames: int) -> None:
    features = np.random.default_rng(frames).standard_normal((16, frames)).astype(np.float32)
    padding = -frames % 100
    padded = torch.from_numpy(np.pad(features, ((0, 0), (0, padding))))[None]
    mask = torch.tensor([[1] * frames + [0] * padding])
    with torch.inference_mode():
        expected = encoders.reference(padded, mask).last_hidden_state.numpy()
    for ours in encoders.ours:
        (states,) = ours.encode([features])
        assert states.shape == expected.shape
        np.testing.assert_allclose(states, expected, atol=2e-5)


def test_a_window_that_is_complete_never_changes(encoders: Encoders) -> None:
    features = np.random.default_rng(3).standard_normal((16, 630)).astype(np.float32)
    whole, begun = (encoders.ours[0].encode([part])[0] for part in (features, features[:, :400]))
    np.testing.assert_allclose(whole[: len(begun)], begun, atol=1e-6)


@pytest.mark.parametrize("samples", [100, 7_999, 8_000, 8_001, 16_000, 33_333])
def test_features_are_those_of_the_reference(samples: int) -> None:
    audio = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    given = transformers.Qwen3ASRFeatureExtractor()(
        audio, sampling_rate=16_000, padding="longest", return_attention_mask=True, return_tensors="np"
    )
    expected = given.input_features[0][:, : int(given.attention_mask.sum())]
    features = WholeFrames(128)(audio)
    assert features.shape == expected.shape
    np.testing.assert_allclose(features, expected, atol=2e-4)
