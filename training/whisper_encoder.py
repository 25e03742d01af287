"""Whisper's encoder in torch, from CTranslate2 weights: makes the trainer's cached states, and is the oracle of the export.

Runs on the audio's own length: the position table is sliced instead of padding the audio to 30 s.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from export.importers.ctranslate2 import read_ctranslate2


class WhisperEncoder:
    """Frozen. `dtype` is that of the matrix products; layer norms and residuals stay in float32."""

    def __init__(self, model_path: Path, dtype: torch.dtype = torch.float32) -> None:
        arrays = read_ctranslate2(model_path)
        self.dtype = dtype
        self.heads = int(arrays["encoder/num_heads"])
        self.layers = sum(name.startswith("encoder/layer_") and name.endswith("ffn/linear_0/bias") for name in arrays)
        self.weights = {
            name.removeprefix("encoder/"): torch.from_numpy(array.astype("float32"))
            for name, array in arrays.items()
            if name.startswith("encoder/")
        }
        self.cast = {name: weight.to(dtype) for name, weight in self.weights.items()}

    def linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x.to(self.dtype), self.cast[f"{name}/weight"], self.cast[f"{name}/bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.weights[f"{name}/gamma"], self.weights[f"{name}/beta"])

    def attend(self, x: Tensor, name: str) -> Tensor:
        qkv = self.linear(x, f"{name}/linear_0").unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        y = functional.scaled_dot_product_attention(qkv[:1], qkv[1:2], qkv[2:])[0]
        return self.linear(y.transpose(0, 1).flatten(1), f"{name}/linear_1").float()

    @torch.inference_mode()
    def __call__(self, features: Tensor) -> Tensor:
        """Log-mel [80, frames] -> states [ceil(frames / 2), width] float32."""
        return self.norm(self.lower_states(features, 0), "layer_norm")

    @torch.inference_mode()
    def lower_states(self, features: Tensor, left_out: int) -> Tensor:
        """Return the states [ceil(frames / 2), width] before the last `left_out` layers and the last norm."""
        states = self.convolve(features)
        states = states + self.weights["position_encodings/encodings"][: len(states)]
        for layer in range(self.layers - left_out):
            attention, ffn = f"layer_{layer}/self_attention", f"layer_{layer}/ffn"
            states = states + self.attend(self.norm(states, f"{attention}/layer_norm"), attention)
            inner = functional.gelu(self.linear(self.norm(states, f"{ffn}/layer_norm"), f"{ffn}/linear_0"))
            states = states + self.linear(inner, f"{ffn}/linear_1").float()
        return states

    def convolve(self, features: Tensor) -> Tensor:
        x = features[None].to(self.dtype)
        x = functional.gelu(functional.conv1d(x, self.cast["conv1/weight"], self.cast["conv1/bias"], padding=1))
        x = functional.gelu(functional.conv1d(x, self.cast["conv2/weight"], self.cast["conv2/bias"], stride=2, padding=1))
        return x[0].T.float()
