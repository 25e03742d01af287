"""Granite-speech's encoder gives the states of transformers: blocks, Shaw's positions, and audio that fills no block."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.checkpoints.granite_speech import read_shape
from export.checkpoints.safetensors_file import read_folder
from models.encoders.granite import build_encoder
from models.features.granite_mel import GraniteMel
from models.runtimes.onnx.encoder import OnnxEncoder
from tests.support.tiny.tiny_checkpoints import spread_weights
from tests.support.tiny.tiny_speech_llms import granite_features

CONFIG: dict[str, Any] = {
    "input_dim": 12, "num_layers": 4, "hidden_dim": 32, "num_heads": 2, "output_dim": 9, "context_size": 20, "max_pos_emb": 24,
    "conv_kernel_size": 15, "conv_expansion_factor": 2,
}  # fmt: skip
LETTERS = 1


class Encoders:
    """The reference, and ours, whose states tell letters too."""

    def __init__(self, folder: Path) -> None:
        from transformers.models.granite_speech.configuration_granite_speech import GraniteSpeechEncoderConfig
        from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechCTCEncoder

        torch.manual_seed(2)
        self.reference: Any = GraniteSpeechCTCEncoder(GraniteSpeechEncoderConfig(**CONFIG)).eval()
        spread_weights(self.reference, 0.2)
        for layer in self.reference.layers:
            torch.nn.init.uniform_(layer.conv.batch_norm.running_var, 0.5, 2.0)
            torch.nn.init.normal_(layer.conv.batch_norm.running_mean)
        save_file(self.reference.state_dict(), folder / "model.safetensors")
        tensors = read_folder(folder)
        shape = read_shape(CONFIG, tensors, {}, "it", tells_letters=True)
        build_encoder(shape, tensors).save(folder / "encoder.onnx")
        self.ours = OnnxEncoder(folder / "encoder.onnx", threads=1)

    def reference_states(self, features: torch.Tensor) -> tuple[Any, Any]:
        """Return the last states [frames, width], and the probability of a letter [frames] in the middle."""
        middle: list[torch.Tensor] = []
        hook = self.reference.layers[1].register_forward_hook(lambda _module, _inputs, output: middle.append(output.clone()))
        with torch.inference_mode():
            last = self.reference(features).last_hidden_state[0]
            letters = torch.softmax(self.reference.out(middle[0][0]), dim=-1)
        hook.remove()
        return last.numpy(), 1 - letters[:, 0].numpy()


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoders]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Encoders(tmp_path_factory.mktemp("encoder"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("frames", [1, 2, 19, 20, 21, 40, 57])
def test_states_are_those_of_the_reference(encoders: Encoders, frames: int) -> None:
    features = np.random.default_rng(frames).standard_normal((12, frames)).astype(np.float32)
    states, letters = encoders.reference_states(torch.from_numpy(features.T[None]))
    (ours,) = encoders.ours.encode([features])
    np.testing.assert_allclose(ours[:, :-LETTERS], states, atol=2e-5)
    np.testing.assert_allclose(ours[:, -1], letters, atol=1e-5)


@pytest.mark.parametrize("samples", [400, 16_000, 16_159, 16_160, 33_333])
def test_features_are_those_of_the_reference(samples: int) -> None:
    audio = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    expected = granite_features(audio)[0].numpy().T
    features = GraniteMel()(audio)
    assert features.shape == expected.shape
    np.testing.assert_allclose(features, expected, atol=2e-4)
