"""Read a llama-family GGUF file: configuration, fp32 weights under Hugging Face names, and the tokeniser.

Weights are dequantised; each linear weight is [outputs, inputs], rotary embeddings rotate halves, as in transformers.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from models.graph.linear import Float32
from models.llms.llama import Llama, LlamaConfig

MODEL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
PRE_TOKENISERS = {"smollm"}


class GgufError(ValueError):
    """The file is no GGUF that this reader knows, or it is incomplete."""


def read_llama(path: Path) -> Llama:
    """Configuration and weights. Raises `GgufError` for another architecture, unknown or missing tensors."""
    reader = _open(path)
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise GgufError(f"{path.name} holds the architecture {architecture!r}, this reader knows 'llama'")
    for key in ("llama.rope.scaling.type", "llama.expert_count"):
        if reader.get_field(key) is not None:
            raise GgufError(f"{path.name} sets {key}, which this reader does not know")
    embedding_size = _field(reader, "llama.embedding_length")
    heads = _field(reader, "llama.attention.head_count")
    key_value_heads = _field(reader, "llama.attention.head_count_kv")
    layers = _field(reader, "llama.block_count")

    weights = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if tensor.name.endswith("attn_q.weight"):
            weight = _rotate_halves(weight, heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = _rotate_halves(weight, key_value_heads)
        weights[_hugging_face_name(tensor.name)] = weight
    tied = "lm_head.weight" not in weights
    missing = _expected_names(layers, tied) - weights.keys()
    if missing:
        raise GgufError(f"{path.name} lacks {len(missing)} tensors, one is {min(missing)}")

    config = LlamaConfig(
        layers=layers,
        embedding_size=embedding_size,
        heads=heads,
        key_value_heads=key_value_heads,
        head_size=weights["model.layers.0.self_attn.q_proj.weight"].shape[0] // heads,
        feed_forward_size=_field(reader, "llama.feed_forward_length"),
        vocabulary_size=weights["model.embed_tokens.weight"].shape[0],
        rope_theta=_field(reader, "llama.rope.freq_base"),
        norm_epsilon=_field(reader, "llama.attention.layer_norm_rms_epsilon"),
        tied=tied,
    )
    return Llama(config, weights)


def read_tokeniser(path: Path) -> Tokenizer:
    """The byte-level BPE tokeniser, with its control tokens as special tokens. Raises `GgufError` for another kind."""
    reader = _open(path)
    kind, pre_tokeniser = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre")
    if kind != "gpt2" or pre_tokeniser not in PRE_TOKENISERS:
        raise GgufError(f"{path.name} has the tokeniser {kind!r} with {pre_tokeniser!r}, this reader knows 'gpt2' with 'smollm'")
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    types: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]

    tokeniser = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokeniser.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokeniser.decoder = decoders.ByteLevel()
    controls = [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL]
    tokeniser.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in controls])
    return tokeniser


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise GgufError(f"{path.name} is not a readable GGUF file: {error}") from error


def _field(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise GgufError(f"the GGUF file lacks the field {key}")
    return field.contents()


def _rotate_halves(weight: Float32, heads: int) -> Float32:
    """Undo llama.cpp's row order, which pairs rows (2i, 2i+1) for its interleaved rotary embedding, per head."""
    outputs, inputs = weight.shape
    return weight.reshape(heads, outputs // heads // 2, 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)


def _hugging_face_name(name: str) -> str:
    if name in MODEL_TENSORS:
        return MODEL_TENSORS[name]
    match name.split(".", 2):
        case ["blk", layer, rest] if rest in LAYER_TENSORS:
            return f"model.layers.{layer}.{LAYER_TENSORS[rest]}"
    raise GgufError(f"unknown tensor {name}")


def _expected_names(layers: int, tied: bool) -> set[str]:
    names = {f"model.layers.{layer}.{name}" for layer in range(layers) for name in LAYER_TENSORS.values()}
    names.update(MODEL_TENSORS.values())
    return names - {"lm_head.weight"} if tied else names
