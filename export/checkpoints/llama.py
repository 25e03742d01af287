"""The LLMs of llama's kind in safetensors: Llama, Qwen2 / 2.5, Qwen3, Mistral, SmolLM2 / 3 and Granite."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from export.checkpoints.checkpoint import read_layers, read_value, require_shape
from export.checkpoints.safetensors_file import CheckpointError, Tensors
from models.graph.lazy_weights import Compute, LazyWeights, change_weights
from models.graph.linear import Float32
from models.llms.llama import EMBEDDING, Llama, LlamaConfig

LAYER = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
HEAD_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")


@dataclass(frozen=True)
class Family:
    """The differences of a family: tensors that each layer has beside `LAYER`, and the multipliers of Granite."""

    more: tuple[str, ...] = ()
    multiplies: bool = False


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "smollm3": Family(),
    "qwen2": Family(BIASES),
    "qwen3": Family(HEAD_NORMS),
    "granite": Family(multiplies=True),
}
"""By the `model_type` of `config.json`."""


def read_text_model(tensors: Tensors, config: Mapping[str, Any], place: str) -> Llama:
    """Return the LLM of `tensors` named `model.…` and `lm_head.weight`, whose configuration is `config`.

    Weights are read when they are used. Raises `CheckpointError` for a family, a rotary embedding or a size that is not known.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise CheckpointError(f"{place} has an LLM of the kind {kind!r}; known are {', '.join(sorted(FAMILIES))}")
    layers = read_layers(config, "num_hidden_layers", tensors, "model.layers.", place)
    shape, family = read_config(config, layers, place), FAMILIES[kind]
    tied = config.get("tie_word_embeddings", False) or "lm_head.weight" not in tensors
    names = [f"model.layers.{layer}.{name}" for layer in range(shape.layers) for name in (*LAYER, *family.more)]
    names += [EMBEDDING, "model.norm.weight", *([] if tied else ["lm_head.weight"])]
    for name in names:
        tensors.place(name)
    for number in range(shape.layers):
        for name in ("self_attn.o_proj.bias", *(BIASES if family.more != BIASES else ())):
            if f"model.layers.{number}.{name}" in tensors:
                raise CheckpointError(f"{place} has biases ({name}), which the family {kind} has not here")
    require_shape(tensors, EMBEDDING, (shape.vocabulary_size, shape.embedding_size), place)
    query = (shape.heads * shape.head_size, shape.embedding_size)
    require_shape(tensors, "model.layers.0.self_attn.q_proj.weight", query, place)
    gate = (shape.feed_forward_size, shape.embedding_size)
    require_shape(tensors, "model.layers.0.mlp.gate_proj.weight", gate, place)
    llama = Llama(replace(shape, tied=tied), LazyWeights({name: partial(tensors.__getitem__, name) for name in names}))
    return fold_multipliers(llama, config) if family.multiplies else llama


def read_config(config: Mapping[str, Any], layers: int, place: str) -> LlamaConfig:
    """Return the shape of a model. Raises `CheckpointError`."""
    values = dict(config)
    if values.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{place} has the activation {values['hidden_act']!r} in its LLM; known is silu")
    heads, width = read_value(values, "num_attention_heads", place), read_value(values, "hidden_size", place)
    head_size = values.get("head_dim") or width // heads
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    unturned = [layer for layer, turns in enumerate(values.get("no_rope_layers") or []) if not turns]
    if values["model_type"] == "smollm3" and not values.get("no_rope_layers"):
        interval = values.get("no_rope_layer_interval", 4)
        unturned = [layer for layer in range(layers) if (layer + 1) % interval == 0]
    theta = float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0)
    return LlamaConfig(
        layers=layers,
        embedding_size=width,
        heads=heads,
        key_value_heads=values.get("num_key_value_heads") or heads,
        head_size=head_size,
        feed_forward_size=read_value(values, "intermediate_size", place),
        vocabulary_size=read_value(values, "vocab_size", place),
        rope_theta=theta,
        norm_epsilon=read_value(values, "rms_norm_eps", place),
        tied=False,
        frequency_factors=_frequency_factors(rope, theta, head_size, place),
        unturned_layers=frozenset(unturned),
    )


def largest_position(config: Mapping[str, Any]) -> int:
    """Return how many positions the model was made for, a sliding window counted as their end."""
    positions = int(config.get("max_position_embeddings") or 2048)
    slides = config.get("sliding_window") and config.get("use_sliding_window", config.get("model_type") == "mistral")
    return min(positions, int(config["sliding_window"])) if slides else positions


def _frequency_factors(rope: Mapping[str, Any], theta: float, head_size: int, place: str) -> tuple[float, ...]:
    """Return by how much each frequency is divided. The scaling of Llama 3.1 is that of transformers' `llama3`."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return ()
    if kind == "linear":
        return (float(rope["factor"]),) * (head_size // 2)
    if kind != "llama3":
        raise CheckpointError(f"{place} scales its rotary embedding as {kind!r}; known are default, linear and llama3")
    factor, original = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factors = []
    for index in range(0, head_size, 2):
        turns = original / (2 * math.pi * theta ** (index / head_size))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def fold_multipliers(llama: Llama, config: Mapping[str, Any]) -> Llama:
    """Return a Granite whose four multipliers are in its weights, the embeddings' among them.

    Speech frames stand beside embeddings and have to be multiplied by `embedding_multiplier` too.
    """
    shape = llama.config
    embedding, residual = float(config.get("embedding_multiplier", 1)), float(config.get("residual_multiplier", 1))
    query = float(config.get("attention_multiplier", 1)) * math.sqrt(shape.head_size)
    head = 1 / float(config.get("logits_scaling", 1))
    given = llama.weights

    def scaled(name: str, scale: float) -> Float32:
        return given[name] * np.float32(scale)

    folded: dict[str, Compute] = {}
    folded["lm_head.weight"] = partial(scaled, EMBEDDING if shape.tied else "lm_head.weight", head)
    folded[EMBEDDING] = partial(scaled, EMBEDDING, embedding)
    for layer in range(shape.layers):
        for part, scale in (("self_attn.q_proj", query), ("self_attn.o_proj", residual), ("mlp.down_proj", residual)):
            name = f"model.layers.{layer}.{part}.weight"
            folded[name] = partial(scaled, name, scale)
    return Llama(replace(shape, tied=False), change_weights(given, folded))
