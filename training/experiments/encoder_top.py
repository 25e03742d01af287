"""The last layers of Whisper's encoder as a module that can learn, and a cache of the states below them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from models.features.log_mel import log_mel
from training.cache_states import CachedUtterance, is_held_out, open_cache, read_index
from training.recordings import read_audio, read_rows
from training.whisper_encoder import WhisperEncoder

HELD_OUT = 30
MAX_RECORDING_S = 12.0


class EncoderLayer(nn.Module):
    """One layer of Whisper's encoder, from CTranslate2's arrays of that layer."""

    def __init__(self, weights: dict[str, Tensor], layer: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        prefix = f"layer_{layer}/"
        named = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        self.attention_norm = _read_norm(named, "self_attention/layer_norm")
        self.qkv = _read_linear(named, "self_attention/linear_0")
        self.attention_out = _read_linear(named, "self_attention/linear_1")
        self.feed_forward_norm = _read_norm(named, "ffn/layer_norm")
        self.feed_forward_in = _read_linear(named, "ffn/linear_0")
        self.feed_forward_out = _read_linear(named, "ffn/linear_1")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [batch, states, width]; mask [batch, 1, 1, states], true where there is a state."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attention_out(y.transpose(1, 2).flatten(2))
        inner: Tensor = self.feed_forward_out(functional.gelu(self.feed_forward_in(self.feed_forward_norm(x))))
        return x + inner


class EncoderTop(nn.Module):
    """The last `layers` of the encoder and its last norm. Frozen, it gives the states that the whole encoder gives."""

    def __init__(self, encoder: WhisperEncoder, layers: int) -> None:
        super().__init__()
        first = encoder.layers - layers
        self.layers = nn.ModuleList(
            EncoderLayer(encoder.weights, number, encoder.heads) for number in range(first, encoder.layers)
        )
        self.norm = _read_norm(encoder.weights, "layer_norm")

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """States below the layers [batch, states, width] and their count -> finished states, 0 behind their end."""
        mask = torch.arange(states.shape[1]) < lengths[:, None]
        for layer in self.layers:
            states = layer(states, mask[:, None, None])
        finished: Tensor = self.norm(states) * mask[..., None]
        return finished


def _read_linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    weight = weights[f"{name}/weight"]
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": weights[f"{name}/bias"]})
    return linear


def _read_norm(weights: dict[str, Tensor], name: str) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(weights[f"{name}/gamma"]))
    norm.load_state_dict({"weight": weights[f"{name}/gamma"], "bias": weights[f"{name}/beta"]})
    return norm


def cache_lower_states(data: Path, texts: dict[str, str], encoder: WhisperEncoder, layers: int, out: Path, max_s: float) -> None:
    """Keep the states below the encoder's last `layers` of recordings whose text is known, up to `max_s` of audio in all.

    A recording is encoded at its own length. Some held-out recordings come first, then read speech in the manifest's order.
    A second call goes on where the first stopped.
    """
    rows = {Path(row["file"]).stem: row for row in read_rows(data / "train.jsonl") if row["duration_s"] <= MAX_RECORDING_S}
    ids = sorted((id for id in rows if id in texts), key=lambda id: rows[id]["set"] != "libri_clean_5")
    held_out = [id for id in ids if is_held_out(id)][:HELD_OUT]
    with open_cache(out) as cache:
        for id in tqdm(held_out + [id for id in ids if not is_held_out(id)], desc="states below", mininterval=10):
            if cache.frames >= 50 * max_s:
                break
            if id not in cache.done:
                states = encoder.lower_states(torch.from_numpy(log_mel(read_audio(data / rows[id]["file"]))), layers)
                cache.append(CachedUtterance(id, texts[id], rows[id]["set"], 0, 0), states.numpy().astype(np.float16))


def known_texts(caches: list[Path]) -> dict[str, str]:
    """Return the texts of cached utterances by id, without those that were joined from several."""
    return {entry.id: entry.text for folder in caches for entry in read_index(folder)}
