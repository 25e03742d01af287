"""Tiny random Whisper models, as transformers' modules and as CTranslate2's weights and file."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration
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


def random_whisper(
    seed: int, *, vocabulary: int = 300, layers: int = 2, positions: int = 64, std: float = 0.3
) -> WhisperForConditionalGeneration:
    """A whole model, whose decoder has `layers` and reads states of the encoders above."""
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=vocabulary, d_model=WIDTH, encoder_layers=1, decoder_layers=layers, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=40,
        max_target_positions=positions, num_mel_bins=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def decoder_arrays(model: WhisperForConditionalGeneration) -> dict[str, Array]:
    """The decoder's weights under CTranslate2's names, in float32."""
    weights = {name.removeprefix("model.decoder."): value.detach() for name, value in model.state_dict().items()}
    arrays: dict[str, Array] = {
        "num_heads": np.array(model.config.decoder_attention_heads, np.int16),
        "embeddings/weight": weights["embed_tokens.weight"].numpy(),
        "projection/weight": weights["embed_tokens.weight"].numpy(),
        "position_encodings/encodings": weights["embed_positions.weight"].numpy(),
    }

    def put(name: str, *sources: str) -> None:
        for part in ("weight", "bias"):
            zeros = torch.zeros(WIDTH)
            pieces = [weights.get(f"{source}.{part}", zeros) for source in sources]
            arrays[f"{name}/{part}"] = torch.cat(pieces).numpy()

    def put_norm(name: str, source: str) -> None:
        arrays[f"{name}/gamma"], arrays[f"{name}/beta"] = (weights[f"{source}.{part}"].numpy() for part in ("weight", "bias"))

    for layer in range(model.config.decoder_layers):
        old, new = f"layers.{layer}", f"layer_{layer}"
        put(f"{new}/self_attention/linear_0", *(f"{old}.self_attn.{part}_proj" for part in "qkv"))
        put(f"{new}/self_attention/linear_1", f"{old}.self_attn.out_proj")
        put(f"{new}/attention/linear_0", f"{old}.encoder_attn.q_proj")
        put(f"{new}/attention/linear_1", *(f"{old}.encoder_attn.{part}_proj" for part in "kv"))
        put(f"{new}/attention/linear_2", f"{old}.encoder_attn.out_proj")
        put(f"{new}/ffn/linear_0", f"{old}.fc1")
        put(f"{new}/ffn/linear_1", f"{old}.fc2")
        put_norm(f"{new}/self_attention/layer_norm", f"{old}.self_attn_layer_norm")
        put_norm(f"{new}/attention/layer_norm", f"{old}.encoder_attn_layer_norm")
        put_norm(f"{new}/ffn/layer_norm", f"{old}.final_layer_norm")
    put_norm("layer_norm", "layer_norm")
    return {f"decoder/{name}": array for name, array in arrays.items()}


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
