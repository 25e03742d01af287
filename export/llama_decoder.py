"""Write a llama decoder as an ONNX graph straight from its weights, over dense key/value slots that the caller owns.

The graph, with B rows of S new positions each, slots of P positions, and N wanted logits:

    embeddings  [B, S, D] float32     in   the new positions' input embeddings
    positions   [B, S] int64          in   their positions, for the rotary embedding
    write_index [B] int64             in   the position in the slot where each row's first new key and value go
    kv_length   [B] int64             in   write_index + S; see below
    wanted      [N, 2] int64          in   (row, index in S) of each position whose logits are wanted
    key_i, value_i   [B, H, P, h]     in   layer i's slots
    logits      [N, V] float32        out
    key_out_i, value_out_i            out  the slots with the new positions written

Bind `key_out_i` to the buffer of `key_i`, and nothing is copied. Rows of different lengths share a batch by padding on
the right: query j of a row sees the slot's positions up to write_index + j, so a true position never sees padding,
and the keys and values that padding leaves behind are overwritten before anything can see them. It needs
write_index + S <= P. Slot memory must hold finite numbers from the start: what is masked still meets a product with 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from export.gguf_weights import Llama, LlamaConfig
from export.graph import GraphBuilder

Float32 = npt.NDArray[np.float32]

DEFAULT_MAX_POSITIONS = 1024


@dataclass(frozen=True)
class SlotPair:
    """The names of one layer's keys and values."""

    key: str
    value: str


Linear = Callable[[GraphBuilder, str, str, Float32], str]
"""Writes `value @ weight.T`: (graph, value, weight's name, weight [outputs, inputs]) -> the product's name."""

Attention = Callable[[GraphBuilder, LlamaConfig, int, str, SlotPair], tuple[str, SlotPair]]
"""Writes rotary embedding, slot update and causal attention: (graph, config, max_positions, packed query, key and value
[B, S, (heads + 2 * key_value_heads) * h], slots) -> attended [B, S, heads * h] and the slots as written."""


def float32_linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
    """The plain product."""
    return graph.node("MatMul", value, graph.weight(name, np.ascontiguousarray(weight.T)))


def standard_attention(
    graph: GraphBuilder, config: LlamaConfig, max_positions: int, packed: str, slots: SlotPair
) -> tuple[str, SlotPair]:
    """Operators of the ONNX standard only: runs anywhere, but ONNX Runtime's CPU kernel computes over whole slots."""
    heads, kv_heads, head_size = config.heads, config.key_value_heads, config.head_size
    split_shape = graph.weight("heads.split", np.array([0, 0, heads + 2 * kv_heads, head_size], np.int64))
    by_head = graph.node("Transpose", graph.node("Reshape", packed, split_shape), perm=[0, 2, 1, 3])
    turning_value = graph.weight("heads.turning_value", np.array([heads + kv_heads, kv_heads], np.int64))
    turning, value = graph.nodes("Split", by_head, turning_value, outputs=2, axis=1)
    turned = graph.node("RotaryEmbedding", turning, *_rotary_tables(graph, config, max_positions), "positions")
    query_key = graph.weight("heads.query_key", np.array([heads, kv_heads], np.int64))
    query, key = graph.nodes("Split", turned, query_key, outputs=2, axis=1)
    written = SlotPair(
        graph.node("TensorScatter", slots.key, key, "write_index", axis=2),
        graph.node("TensorScatter", slots.value, value, "write_index", axis=2),
    )
    attended = graph.node("Attention", query, written.key, written.value, "", "", "", "kv_length", is_causal=1)
    joined_shape = graph.weight("heads.joined", np.array([0, 0, heads * head_size], np.int64))
    return graph.node("Reshape", graph.node("Transpose", attended, perm=[0, 2, 1, 3]), joined_shape), written


def grouped_query_attention(
    graph: GraphBuilder, config: LlamaConfig, max_positions: int, packed: str, slots: SlotPair
) -> tuple[str, SlotPair]:
    """ONNX Runtime's fused operator: each row costs its own length, and its result cannot depend on its neighbours.

    It takes a batch of single tokens, or one row of any length; `positions` and `write_index` follow from `kv_length`.
    """
    one = graph.weight("one", np.array([1], np.int64))
    last_index = graph.node("Cast", graph.node("Sub", "kv_length", one), to=TensorProto.INT32)
    longest = graph.node("Cast", graph.node("ReduceMax", "kv_length", keepdims=0), to=TensorProto.INT32)
    attended, key, value = graph.nodes(
        "GroupQueryAttention",
        *(packed, "", "", slots.key, slots.value, last_index, longest),
        *_rotary_tables(graph, config, max_positions),
        outputs=3,
        domain="com.microsoft",
        num_heads=config.heads,
        kv_num_heads=config.key_value_heads,
        do_rotary=1,
    )
    return attended, SlotPair(key, value)


def build_decoder(
    model: Llama,
    *,
    max_positions: int = DEFAULT_MAX_POSITIONS,
    attention: Attention = standard_attention,
    body: Linear = float32_linear,
    head: Linear = float32_linear,
) -> GraphBuilder:
    """The graph described above with slots of `max_positions`; `body` writes the layers' products, `head` the logits'."""
    config, weights = model.config, model.weights
    graph = GraphBuilder("llama_decoder")
    hidden = graph.input("embeddings", np.float32, ["rows", "tokens", config.embedding_size])
    graph.input("positions", np.int64, ["rows", "tokens"])
    graph.input("write_index", np.int64, ["rows"])
    graph.input("kv_length", np.int64, ["rows"])
    wanted = graph.input("wanted", np.int64, ["wanted", 2])
    slot_shape: list[int | str] = ["rows", config.key_value_heads, max_positions, config.head_size]

    def norm(value: str, name: str) -> str:
        return graph.node("RMSNormalization", value, graph.weight(name, weights[name]), axis=-1, epsilon=config.norm_epsilon)

    all_written = []
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        query_key_value = np.concatenate([weights[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"])
        slots = SlotPair(*(graph.input(f"{name}_{layer}", np.float32, slot_shape) for name in ("key", "value")))
        normed = norm(hidden, f"{prefix}input_layernorm.weight")
        packed = body(graph, normed, f"{prefix}self_attn.qkv_proj.weight", query_key_value)
        attended, written = attention(graph, config, max_positions, packed, slots)
        all_written.append(written)
        output_name = f"{prefix}self_attn.o_proj.weight"
        hidden = graph.node("Add", hidden, body(graph, attended, output_name, weights[output_name]))

        gate_up = np.concatenate([weights[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")])
        normed = norm(hidden, f"{prefix}post_attention_layernorm.weight")
        gate, up = graph.nodes(
            "Split", body(graph, normed, f"{prefix}mlp.gate_up_proj.weight", gate_up), outputs=2, axis=-1, num_outputs=2
        )
        gated = graph.node("Mul", graph.node("Mul", gate, graph.node("Sigmoid", gate)), up)
        down_name = f"{prefix}mlp.down_proj.weight"
        hidden = graph.node("Add", hidden, body(graph, gated, down_name, weights[down_name]))

    last = norm(graph.node("GatherND", hidden, wanted), "model.norm.weight")
    head_name = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    graph.output(head(graph, last, head_name, weights[head_name]), "logits", np.float32, ["wanted", config.vocabulary_size])
    for layer, written in enumerate(all_written):
        graph.output(written.key, f"key_out_{layer}", np.float32, slot_shape)
        graph.output(written.value, f"value_out_{layer}", np.float32, slot_shape)
    return graph


def embedding_table(model: Llama, dtype: npt.DTypeLike = np.float16) -> npt.NDArray[np.floating]:
    """The input embeddings [vocabulary, D] to save as `.npy` for `OnnxLLM`; float16 halves the file at 11 bits of precision."""
    return model.weights["model.embed_tokens.weight"].astype(dtype)


def _rotary_tables(graph: GraphBuilder, config: LlamaConfig, max_positions: int) -> tuple[str, str]:
    """Cosines and sines [max_positions, h / 2], computed in float64."""
    frequencies = config.rope_theta ** (-np.arange(0, config.head_size, 2) / config.head_size)
    angles = np.arange(max_positions)[:, None] * frequencies
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return graph.weight("rotary.cos", cosines), graph.weight("rotary.sin", sines)
