"""A tiny random Whisper encoder, as transformers' module and as a CTranslate2 file."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

Array = npt.NDArray[Any]

WIDTH, HEADS, LAYERS, MEL_BINS, POSITIONS = 32, 2, 2, 80, 60


def random_encoder(seed: int, positions: int = POSITIONS) -> WhisperEncoder:
    torch.manual_seed(seed)
    config = WhisperConfig(
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=3 * WIDTH,
        num_mel_bins=MEL_BINS,
        max_source_positions=positions,
    )
    encoder: WhisperEncoder = WhisperEncoder(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def reference_states(encoder: WhisperEncoder, features: Array) -> Array:
    """Compute the states with transformers at the features' own length: its position table is cut to that length."""
    states = (features.shape[1] + 1) // 2
    whole, whole_length = encoder.embed_positions, encoder.config.max_source_positions
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(whole.weight[:states].detach())
    encoder.config.max_source_positions = encoder.max_source_positions = states
    with torch.inference_mode():
        result: Array = encoder(torch.from_numpy(features)[None]).last_hidden_state[0].numpy()
    encoder.embed_positions, encoder.config.max_source_positions, encoder.max_source_positions = whole, whole_length, whole_length
    return result


def arrays_of(encoder: WhisperEncoder) -> dict[str, Array]:
    """The weights under CTranslate2's names, in float32."""
    weights = {name: value.detach().numpy() for name, value in encoder.named_parameters()}
    arrays: dict[str, Array] = {"encoder/num_heads": np.array(HEADS, np.int16)}
    for name in ("conv1", "conv2"):
        arrays[f"encoder/{name}/weight"], arrays[f"encoder/{name}/bias"] = weights[f"{name}.weight"], weights[f"{name}.bias"]
    arrays["encoder/position_encodings/encodings"] = weights["embed_positions.weight"]
    norms = {"layer_norm": "encoder/layer_norm"}
    for layer in range(LAYERS):
        source, target = f"layers.{layer}", f"encoder/layer_{layer}"
        norms[f"{source}.self_attn_layer_norm"] = f"{target}/self_attention/layer_norm"
        norms[f"{source}.final_layer_norm"] = f"{target}/ffn/layer_norm"
        linears = {"fc1": "ffn/linear_0", "fc2": "ffn/linear_1", "self_attn.out_proj": "self_attention/linear_1"}
        for linear, name in linears.items():
            arrays[f"{target}/{name}/weight"] = weights[f"{source}.{linear}.weight"]
            arrays[f"{target}/{name}/bias"] = weights[f"{source}.{linear}.bias"]
        attention = f"{source}.self_attn"
        biases = [weights[f"{attention}.q_proj.bias"], np.zeros(WIDTH, np.float32), weights[f"{attention}.v_proj.bias"]]
        arrays[f"{target}/self_attention/linear_0/weight"] = np.concatenate(
            [weights[f"{attention}.{p}_proj.weight"] for p in "qkv"]
        )
        arrays[f"{target}/self_attention/linear_0/bias"] = np.concatenate(biases)
    for source, target in norms.items():
        arrays[f"{target}/gamma"], arrays[f"{target}/beta"] = weights[f"{source}.weight"], weights[f"{source}.bias"]
    return arrays


def write_ctranslate2(path: Path, arrays: dict[str, Array], aliases: dict[str, str] | None = None) -> None:
    """The file format, version 6, as CTranslate2 writes it."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    codes = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.int32): 3, np.dtype(np.float16): 4}
    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        data += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", codes[array.dtype], array.nbytes) + array.tobytes()
    data += struct.pack("<I", len(aliases or {}))
    for alias, name in (aliases or {}).items():
        data += text(alias) + text(name)
    path.write_bytes(data)
