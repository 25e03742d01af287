"""Read a GGUF file of the llama family or of Qwen2: configuration, fp32 weights under Hugging Face names, and the tokeniser.

Weights are dequantised; each linear weight is [outputs, inputs], rotary embeddings rotate halves, as in transformers.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from export.importers.byte_level_bpe import qwen2_splitting
from models.graph.lazy_weights import LazyWeights
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
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True)
class Architecture:
    """The differences of an architecture: query and key rows `interleaved` as llama.cpp pairs them, `biases` on q, k and v."""

    interleaved: bool
    biases: bool


ARCHITECTURES = {"llama": Architecture(interleaved=True, biases=False), "qwen2": Architecture(interleaved=False, biases=True)}


def _smollm() -> tuple[Any, Any]:
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    return None, pre_tokenizers.Sequence([digits, words])


PRE_TOKENISERS = {"smollm": _smollm, "qwen2": qwen2_splitting}
"""The normaliser and the pre-tokeniser of each kind."""


class GgufError(ValueError):
    """The file is no GGUF that this reader knows, or it is incomplete."""


def read_llama(path: Path) -> Llama:
    """Configuration and weights, which are dequantised as they are read.

    Raises `GgufError` for another architecture, unknown or missing tensors.
    """
    reader = _open(path)
    architecture = _field(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        known = " and ".join(map(repr, ARCHITECTURES))
        raise GgufError(f"{path.name} holds the architecture {architecture!r}, this reader knows {known}")
    for key in (f"{architecture}.rope.scaling.type", f"{architecture}.expert_count"):
        if reader.get_field(key) is not None:
            raise GgufError(f"{path.name} sets {key}, which this reader does not know")
    heads = _field(reader, f"{architecture}.attention.head_count")
    key_value_heads = _field(reader, f"{architecture}.attention.head_count_kv")
    layers = _field(reader, f"{architecture}.block_count")

    tensors = {_hugging_face_name(tensor.name): tensor for tensor in reader.tensors}
    tied = "lm_head.weight" not in tensors
    missing = _expected_names(layers, tied, ARCHITECTURES[architecture].biases) - tensors.keys()
    if missing:
        raise GgufError(f"{path.name} lacks {len(missing)} tensors, one is {min(missing)}")
    interleaved = {"q_proj.weight": heads, "k_proj.weight": key_value_heads} if ARCHITECTURES[architecture].interleaved else {}

    def weight(name: str) -> Float32:
        array = _dequantise(tensors[name])
        rotating = interleaved.get(name.partition("self_attn.")[2])
        return array if rotating is None else _rotate_halves(array, rotating)

    config = LlamaConfig(
        layers=layers,
        embedding_size=_field(reader, f"{architecture}.embedding_length"),
        heads=heads,
        key_value_heads=key_value_heads,
        head_size=int(tensors["model.layers.0.self_attn.q_proj.weight"].shape[1]) // heads,
        feed_forward_size=_field(reader, f"{architecture}.feed_forward_length"),
        vocabulary_size=int(tensors["model.embed_tokens.weight"].shape[1]),
        rope_theta=_field(reader, f"{architecture}.rope.freq_base"),
        norm_epsilon=_field(reader, f"{architecture}.attention.layer_norm_rms_epsilon"),
        tied=tied,
    )
    return Llama(config, LazyWeights({name: partial(weight, name) for name in tensors}))


ROWS_AT_ONCE = 2048


def _dequantise(tensor: gguf.ReaderTensor) -> Float32:
    """Return the weight in float32; some rows at a time stay in the processor's cache."""
    result = np.empty([int(size) for size in reversed(tensor.shape)], np.float32)
    for first in range(0, len(result), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        result[rows] = gguf.dequantize(tensor.data[rows], tensor.tensor_type)
    return result


def read_tokeniser(path: Path) -> Tokenizer:
    """Return the byte-level BPE tokeniser; control tokens are special, the author's own are added tokens.

    Raises `GgufError` for another kind.
    """
    reader = _open(path)
    kind, pre_tokeniser = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre")
    if kind != "gpt2" or pre_tokeniser not in PRE_TOKENISERS:
        known = " or ".join(map(repr, PRE_TOKENISERS))
        raise GgufError(f"{path.name} has the tokeniser {kind!r} with {pre_tokeniser!r}, this reader knows 'gpt2' with {known}")
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    types: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]

    used = {token: index for index, token in enumerate(tokens) if types[index] != TokenType.UNUSED}
    tokeniser = Tokenizer(models.BPE(vocab=used, merges=merges))
    tokeniser.normalizer, tokeniser.pre_tokenizer = PRE_TOKENISERS[pre_tokeniser]()
    tokeniser.decoder = decoders.ByteLevel()
    for kind, special in ((TokenType.CONTROL, True), (TokenType.USER_DEFINED, False)):
        names = [token for token, its_kind in zip(tokens, types, strict=True) if its_kind == kind]
        tokeniser.add_tokens([AddedToken(name, normalized=False, special=special) for name in names])
    return tokeniser


def read_chat(path: Path) -> tuple[str, int, int]:
    """Return the chat template, the token that ends an answer, and how many positions the model was made for.

    Raises `GgufError` for a file without a template.
    """
    reader = _open(path)
    architecture = _field(reader, "general.architecture")
    template, end = _field(reader, "tokenizer.chat_template"), _field(reader, "tokenizer.ggml.eos_token_id")
    return str(template), int(end), int(_field(reader, f"{architecture}.context_length"))


class _Reader(gguf.GGUFReader):
    """Reads plain arrays: every slice of a `numpy.memmap`, of which a tokeniser needs a million, takes four times as long."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> npt.NDArray[Any]:
        kind = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
        return np.asarray(self.data)[offset : offset + kind.itemsize * int(count)].view(kind)


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return _Reader(path)
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


def _expected_names(layers: int, tied: bool, biases: bool) -> set[str]:
    of_layer = [name for name in LAYER_TENSORS.values() if biases or not name.endswith(".bias")]
    names = {f"model.layers.{layer}.{name}" for layer in range(layers) for name in of_layer}
    names.update(MODEL_TENSORS.values())
    return names - {"lm_head.weight"} if tied else names
