"""Write a decoder of llama's kind (Qwen, Mistral, SmolLM …) as an ONNX graph, over dense key/value slots that the caller owns.

The graph, with B rows of S new positions each, slots of P positions, and N wanted logits:

    embeddings  [B, S, D] float32     in   the new positions' input embeddings
    positions   [B, S] int64          in   their positions, for the rotary embedding
    write_index [B] int64             in   the position in the slot where each row's first new key and value go
    wanted      [N, 2] int64          in   (row, index in S) of each position whose logits are wanted
    key_i, value_i                    in   layer i's slots, in the shape that the attention chose
    logits      [N, V] float32        out
    key_out_i, value_out_i            out  the slots with the new positions written

and the inputs that the attention adds. `ExactAttention` packs the rows: `embeddings` [T, D] holds the positions of all rows, one
row after the other and without padding, and `wanted` [N, 1] counts in T. Only the attention itself is padded.

Bind `key_out_i` to the buffer of `key_i`, and nothing is copied. Rows of different lengths share a batch by padding on
the right: query j of a row sees the slot's positions up to write_index + j, so a true position never sees padding,
and the keys and values that padding leaves behind are overwritten before anything can see them. It needs
write_index + S <= P. Slot memory must hold finite numbers from the start: what is masked still meets a product with 0.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.bundle.sections import GraphValues, LlmSection, Shapes, count_layers, dimension
from models.graph.lazy_weights import Compute, change_weights
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.packed_attention import PackedAttention, SlotPair
from models.graph.rotation import Rotation, spreading_rotation
from models.graph.writer import GraphBuilder, Shape

DEFAULT_MAX_POSITIONS = 1024
EMBEDDING = "model.embed_tokens.weight"
INPUT_ROTATION = "input_rotation"
"""A weight [D, D] that some models have: embeddings are multiplied by it before the first layer."""

READERS = {"input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
           "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj")}  # fmt: skip
"""Which products read what each normalisation gives."""
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
"""Which products add to the residual stream."""


class LlamaSection(LlmSection):
    """A decoder of llama's kind in `bundle.json`."""

    def graph_values(self, shapes: Shapes) -> GraphValues:
        """Read slots [rows, heads, P, h] of `StandardAttention`, or [rows, P, heads * h] of `ExactAttention`."""
        slots = list(shapes.get("key_0", ()))
        by_head = len(slots) == 4
        width = slots[-1] if slots else None
        if by_head or not isinstance(width, int):
            heads, head_size = dimension(shapes, "key_0", 1), width
        else:
            heads, head_size = width // self.head_size, width // self.key_value_heads
        return {
            "layers": count_layers(shapes, "key"),
            "key_value_heads": heads,
            "head_size": head_size,
            "max_positions": dimension(shapes, "key_0", 2 if by_head else 1),
            "embedding_size": dimension(shapes, "embeddings", -1),
            "vocabulary_size": dimension(shapes, "logits", 1),
        }


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a llama model. `tied` means that the language model head is the embedding table.

    Each frequency of the rotary embedding is divided by its own of `frequency_factors`, if there are any; `unturned_layers` have
    no rotary embedding.
    """

    layers: int
    embedding_size: int
    heads: int
    key_value_heads: int
    head_size: int
    feed_forward_size: int
    vocabulary_size: int
    rope_theta: float
    norm_epsilon: float
    tied: bool
    frequency_factors: tuple[float, ...] = ()
    unturned_layers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Llama:
    """A model as read: `weights` by Hugging Face names; `lm_head.weight` is absent where the head is tied."""

    config: LlamaConfig
    weights: Mapping[str, Float32]


def rotated(model: Llama) -> Llama:
    """Return a model that computes the same from the same embeddings: `INPUT_ROTATION` takes them into its rotated stream."""
    config, given = model.config, model.weights
    stream, values = spreading_rotation(config.embedding_size), spreading_rotation(config.head_size)
    changes: dict[str, Compute] = {}

    def ones() -> Float32:
        return np.ones(config.embedding_size, np.float32)

    def reader(name: str, norm: str) -> Float32:
        gain = given[norm].astype(np.float64)
        return _by_rows(given[name], lambda rows: stream.turn(rows * gain))

    def value(name: str, norm: str) -> Float32:
        return _turn_heads(reader(name, norm).T, values).T

    def value_bias(name: str) -> Float32:
        bias: Float32 = _turn_heads(given[name][None], values)[0]
        return bias

    def writer(name: str) -> Float32:
        weight = _turn_heads(given[name], values) if "o_proj" in name else given[name]
        return np.ascontiguousarray(_by_rows(weight.T, stream.turn).T)

    changes["lm_head.weight"] = partial(reader, EMBEDDING if config.tied else "lm_head.weight", "model.norm.weight")
    changes["model.norm.weight"] = ones
    changes[INPUT_ROTATION] = lambda: stream.matrix.astype(np.float32)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        for norm, readers in READERS.items():
            changes[f"{prefix}{norm}.weight"] = ones
            for each in readers:
                fold = value if each.endswith("v_proj") else reader
                changes[f"{prefix}{each}.weight"] = partial(fold, f"{prefix}{each}.weight", f"{prefix}{norm}.weight")
        for each in WRITERS:
            changes[f"{prefix}{each}.weight"] = partial(writer, f"{prefix}{each}.weight")
        bias = f"{prefix}self_attn.v_proj.bias"
        if bias in given:
            changes[bias] = partial(value_bias, bias)
    return Llama(dataclasses.replace(config, tied=False), change_weights(given, changes))


ROWS_AT_ONCE = 4096


def _by_rows(weight: Float32, function: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Float32:
    """Apply a function to the rows in float64, some at a time."""
    result = np.empty(weight.shape, np.float32)
    for first in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        result[rows] = function(weight[rows].astype(np.float64))
    return result


def _turn_heads(rows: Float32, rotation: Rotation) -> Float32:
    """Turn each head of rows [n, heads * head_size]."""
    return _by_rows(rows.reshape(-1, rotation.size), rotation.turn).reshape(rows.shape)


class Attention(Protocol):
    """Writes the attention of all layers of one graph; made once per graph, where it declares the inputs that it needs."""

    layout: Shape
    """The dimensions of the new positions in every value outside the attention: [B, S], or [T] where rows are packed."""
    slot_shape: Shape

    def order_heads(self, weight: Float32) -> Float32:
        """Return the query's weight, or the output's transposed, [heads * h, D], with its heads in the order of `attend`."""
        ...

    def attend(self, projected: str, slots: SlotPair, *, turns: bool = True) -> tuple[str, SlotPair]:
        """Return the attended values [*layout, heads * h] and the slots as written.

        `projected` [*layout, (heads + 2 * key_value_heads) * h] holds query, key and value, of which query and key are turned
        by their positions if `turns`.
        """
        ...


AttentionWriter = Callable[[GraphBuilder, LlamaConfig, int], Attention]
"""Starts the attention of a graph for slots of that many positions; `positions` and `write_index` are declared already."""


class StandardAttention:
    """ONNX's `Attention` over slots [B, key_value_heads, P, h] as they are: what TensorRT runs, and the simplest to be right.

    Needs the input `kv_length` [B] = write_index + S. ONNX Runtime's CPU kernel computes over whole slots.
    """

    layout: Shape = ("rows", "tokens")

    def __init__(self, graph: GraphBuilder, config: LlamaConfig, max_positions: int) -> None:
        self.graph, self.config, self.max_positions = graph, config, max_positions
        self.slot_shape: Shape = ["rows", config.key_value_heads, max_positions, config.head_size]
        graph.input("kv_length", np.int64, ["rows"])

    def order_heads(self, weight: Float32) -> Float32:
        return weight

    def attend(self, projected: str, slots: SlotPair, *, turns: bool = True) -> tuple[str, SlotPair]:
        graph, heads, kv_heads, head_size = self.graph, self.config.heads, self.config.key_value_heads, self.config.head_size
        split_shape = graph.weight("heads.split", np.array([0, 0, heads + 2 * kv_heads, head_size], np.int64))
        by_head = graph.node("Transpose", graph.node("Reshape", projected, split_shape), perm=[0, 2, 1, 3])
        turning_value = graph.weight("heads.turning_value", np.array([heads + kv_heads, kv_heads], np.int64))
        turning, value = graph.nodes("Split", by_head, turning_value, outputs=2, axis=1)
        tables = rotary_tables(graph, self.config, self.max_positions)
        turned = graph.node("RotaryEmbedding", turning, *tables, "positions") if turns else turning
        query_key = graph.weight("heads.query_key", np.array([heads, kv_heads], np.int64))
        query, key = graph.nodes("Split", turned, query_key, outputs=2, axis=1)
        written = slots.write(graph, key, value, axis=2)
        attended = graph.node("Attention", query, written.key, written.value, "", "", "", "kv_length", is_causal=1)
        joined_shape = graph.weight("heads.joined", np.array([0, 0, heads * head_size], np.int64))
        return graph.node("Reshape", graph.node("Transpose", attended, perm=[0, 2, 1, 3]), joined_shape), written


class ExactAttention(PackedAttention):
    """`PackedAttention` with rotary embedding."""

    def __init__(self, graph: GraphBuilder, config: LlamaConfig, max_positions: int) -> None:
        super().__init__(graph, config, max_positions)
        self.rotary = rotary_tables(graph, config, max_positions)

    def turn(self, projected: str) -> str:
        heads = self.config.heads + self.config.key_value_heads
        return self.graph.node("RotaryEmbedding", projected, *self.rotary, "positions", num_heads=heads)


def rotary_tables(graph: GraphBuilder, config: LlamaConfig, max_positions: int) -> tuple[str, str]:
    """Cosines and sines [max_positions, h / 2], computed in float64."""
    frequencies = config.rope_theta ** (-np.arange(0, config.head_size, 2) / config.head_size)
    if config.frequency_factors:
        frequencies = frequencies / np.array(config.frequency_factors)
    angles = np.arange(max_positions)[:, None] * frequencies
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return graph.weight("rotary.cos", cosines), graph.weight("rotary.sin", sines)


def build_decoder(
    model: Llama,
    *,
    max_positions: int = DEFAULT_MAX_POSITIONS,
    attention: AttentionWriter = StandardAttention,
    body: Linear = float32_linear,
    head: Linear = float32_linear,
    float_type: npt.DTypeLike = np.float32,
) -> GraphBuilder:
    """Return the graph described above with slots of `max_positions`; `body` writes the layers' products, `head` the logits'.

    It computes in `float_type`, which its slots have too.
    """
    config, weights = model.config, model.weights
    graph = GraphBuilder("llama_decoder", float_type)
    graph.input("positions", np.int64, ["rows", "tokens"])
    graph.input("write_index", np.int64, ["rows"])
    attending = attention(graph, config, max_positions)
    hidden = graph.input("embeddings", np.float32, [*attending.layout, config.embedding_size])
    wanted = graph.input("wanted", np.int64, ["wanted", len(attending.layout)])

    def norm(value: str, name: str) -> str:
        return graph.node("RMSNormalization", value, graph.weight(name, weights[name]), axis=-1, epsilon=config.norm_epsilon)

    if INPUT_ROTATION in weights:
        hidden = _rotate(graph, hidden, weights[INPUT_ROTATION])
    all_written = []
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        query, key, value = (weights[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv")
        query_key_value = np.concatenate([attending.order_heads(query), key, value])
        slots = SlotPair.declare(graph, layer, attending.slot_shape)
        normed = norm(hidden, f"{prefix}input_layernorm.weight")
        projected = body(graph, normed, f"{prefix}self_attn.qkv_proj.weight", query_key_value)
        if f"{prefix}self_attn.q_proj.bias" in weights:
            query, key, value = (weights[f"{prefix}self_attn.{name}_proj.bias"] for name in "qkv")
            bias = np.concatenate([attending.order_heads(query[:, None])[:, 0], key, value])
            projected = graph.node("Add", projected, graph.weight(f"{prefix}self_attn.qkv_proj.bias", bias))
        if f"{prefix}self_attn.q_norm.weight" in weights:
            projected = _norm_heads(graph, model, projected, prefix, len(attending.layout))
        attended, written = attending.attend(projected, slots, turns=layer not in config.unturned_layers)
        all_written.append(written)
        output_name = f"{prefix}self_attn.o_proj.weight"
        output = attending.order_heads(weights[output_name].T).T
        hidden = graph.node("Add", hidden, body(graph, attended, output_name, output))

        gate_up = np.concatenate([weights[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")])
        normed = norm(hidden, f"{prefix}post_attention_layernorm.weight")
        gate, up = graph.nodes(
            "Split", body(graph, normed, f"{prefix}mlp.gate_up_proj.weight", gate_up), outputs=2, axis=-1, num_outputs=2
        )
        gated = graph.node("Mul", graph.node("Mul", gate, graph.node("Sigmoid", gate)), up)
        down_name = f"{prefix}mlp.down_proj.weight"
        hidden = graph.node("Add", hidden, body(graph, gated, down_name, weights[down_name]))

    last = norm(graph.node("GatherND", hidden, wanted), "model.norm.weight")
    head_name = EMBEDDING if config.tied else "lm_head.weight"
    logits = head(graph, last, head_name, weights[head_name])
    graph.output(logits, "logits", np.float32, ["wanted", config.vocabulary_size])
    for layer, written in enumerate(all_written):
        written.output(graph, layer, attending.slot_shape)
    return graph


def _norm_heads(graph: GraphBuilder, model: Llama, projected: str, prefix: str, leading: int) -> str:
    """Normalise each head of query and key (Qwen3) in `projected`, which has `leading` dimensions before the last."""
    config, (query, key) = model.config, (model.weights[f"{prefix}self_attn.{name}_norm.weight"] for name in "qk")
    turning, all_heads = config.heads + config.key_value_heads, config.heads + 2 * config.key_value_heads
    by_head = graph.weight("heads.apart", np.array([*[0] * leading, all_heads, config.head_size], np.int64))
    sizes = graph.weight("heads.query_key_value", np.array([turning, config.key_value_heads], np.int64))
    heads, value = graph.nodes("Split", graph.node("Reshape", projected, by_head), sizes, outputs=2, axis=-2)
    plain = graph.weight("heads.plain_gain", np.ones(config.head_size, np.float32))
    normed = graph.node("RMSNormalization", heads, plain, axis=-1, epsilon=config.norm_epsilon)
    gains = np.concatenate([np.tile(query, (config.heads, 1)), np.tile(key, (config.key_value_heads, 1))])
    gained = graph.node("Mul", normed, graph.weight(f"{prefix}self_attn.head_gains", gains))
    together = graph.weight("heads.together", np.array([*[0] * leading, all_heads * config.head_size], np.int64))
    return graph.node("Reshape", graph.node("Concat", gained, value, axis=-2), together)


def embedding_table(model: Llama, dtype: npt.DTypeLike = np.float16) -> npt.NDArray[np.floating]:
    """Return the input embeddings [vocabulary, D] to save as `.npy` for `OnnxLLM`, in float16 at 11 bits of precision."""
    return model.weights[EMBEDDING].astype(dtype)


def _rotate(graph: GraphBuilder, hidden: str, rotation: Float32) -> str:
    """Return the product in float32 of at least two rows: of one alone ONNX Runtime would compute other last bits."""
    twice = float32_linear(graph, graph.node("Concat", hidden, hidden, axis=-2), INPUT_ROTATION, rotation)
    return graph.nodes("Split", twice, outputs=2, axis=-2, num_outputs=2)[0]
