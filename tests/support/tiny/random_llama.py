"""Decoders of well-known shapes with random weights: for what depends on shapes alone, such as a compiler's choice of kernels."""

from dataclasses import replace

import numpy as np

from models.llms.llama import Llama, LlamaConfig

SMOLLM2_135M = LlamaConfig(
    layers=30,
    embedding_size=576,
    heads=9,
    key_value_heads=3,
    head_size=64,
    feed_forward_size=1536,
    vocabulary_size=49152,
    rope_theta=100_000.0,
    norm_epsilon=1e-5,
    tied=True,
)
QWEN2_500M = LlamaConfig(
    layers=24,
    embedding_size=896,
    heads=14,
    key_value_heads=2,
    head_size=64,
    feed_forward_size=4864,
    vocabulary_size=151_936,
    rope_theta=1_000_000.0,
    norm_epsilon=1e-6,
    tied=True,
)


class _Drawing:
    """Weights drawn one after the other from one seed."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.weights: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}

    def draw(self, name: str, *shape: int) -> None:
        """Small numbers; ones for a norm, which has one dimension."""
        scale = np.float32(1 / np.sqrt(shape[-1]))
        plain = len(shape) == 1
        self.weights[name] = np.ones(shape, np.float32) if plain else scale * self.generator.standard_normal(shape, np.float32)


def random_llama(config: LlamaConfig, *, layers: int | None = None, query_bias: bool = False) -> Llama:
    """A llama decoder, or with `query_bias` one of Qwen2's kind (biases on query, key and value); the first `layers` of it."""
    config = replace(config, layers=layers or config.layers)
    drawing, width = _Drawing(), config.embedding_size
    drawing.draw("model.embed_tokens.weight", config.vocabulary_size, width)
    drawing.draw("model.norm.weight", width)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            drawing.draw(f"{prefix}.{name}.weight", width)
        for name, heads in (("q", config.heads), ("k", config.key_value_heads), ("v", config.key_value_heads)):
            drawing.draw(f"{prefix}.self_attn.{name}_proj.weight", heads * config.head_size, width)
            if query_bias:
                drawing.draw(f"{prefix}.self_attn.{name}_proj.bias", heads * config.head_size)
        drawing.draw(f"{prefix}.self_attn.o_proj.weight", width, config.heads * config.head_size)
        for name in ("gate", "up"):
            drawing.draw(f"{prefix}.mlp.{name}_proj.weight", config.feed_forward_size, width)
        drawing.draw(f"{prefix}.mlp.down_proj.weight", width, config.feed_forward_size)
    return Llama(config, drawing.weights)
