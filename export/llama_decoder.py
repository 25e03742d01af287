"""Write a llama or Qwen2 decoder as an ONNX graph straight from its weights, over dense key/value slots that the caller owns.

The graph, with B rows of S new positions each, slots of P positions, and N wanted logits:

    embeddings  [B, S, D] float32     in   the new positions' input embeddings
    positions   [B, S] int64          in   their positions, for the rotary embedding
    write_index [B] int64             in   the position in the slot where each row's first new key and value go
    wanted      [N, 2] int64          in   (row, index in S) of each position whose logits are wanted
    key_i, value_i                    in   layer i's slots, in the shape that the attention chose
    logits      [N, V] float32        out
    key_out_i, value_out_i            out  the slots with the new positions written

and one input more that the attention declares (`export.llama_attention`). For greedy decoding without the host between steps,
`on_device` adds

    tokens      [B, S] int64          in   where not negative, the embedding of this token stands in for `embeddings`
    next_tokens [N] int64             out  the likeliest token of each of `logits`

Bind `key_out_i` to the buffer of `key_i`, and nothing is copied. Rows of different lengths share a batch by padding on
the right: query j of a row sees the slot's positions up to write_index + j, so a true position never sees padding,
and the keys and values that padding leaves behind are overwritten before anything can see them. It needs
write_index + S <= P. Slot memory must hold finite numbers from the start: what is masked still meets a product with 0.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from export.gguf_weights import Llama
from export.graph import GraphBuilder
from export.llama_attention import AttentionWriter, SlotPair, StandardAttention

Float32 = npt.NDArray[np.float32]

DEFAULT_MAX_POSITIONS = 1024
EMBEDDING = "model.embed_tokens.weight"
INPUT_ROTATION = "input_rotation"
"""A weight [D, D] that some models have: embeddings are multiplied by it before the first layer."""

Linear = Callable[[GraphBuilder, str, str, Float32], str]
"""Writes `value @ weight.T`: (graph, value, weight's name, weight [outputs, inputs]) -> the product's name."""


def float32_linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
    """The plain product."""
    return graph.node("MatMul", value, graph.weight(name, np.ascontiguousarray(weight.T)))


def transposed_linear(graph: GraphBuilder, value: str, name: str, weight: Float32) -> str:
    """The plain product with the weight stored as it is, so that it can be an embedding table at the same time."""
    return graph.node("MatMul", value, graph.node("Transpose", graph.weight(name, weight), perm=[1, 0]))


def build_decoder(
    model: Llama,
    *,
    max_positions: int = DEFAULT_MAX_POSITIONS,
    attention: AttentionWriter = StandardAttention,
    body: Linear = float32_linear,
    head: Linear = float32_linear,
    float_type: npt.DTypeLike = np.float32,
    on_device: bool = False,
) -> GraphBuilder:
    """The graph described above with slots of `max_positions`; `body` writes the layers' products, `head` the logits'.

    It computes in `float_type`, which its slots have too. A tied head `on_device` has to be `transposed_linear`.
    """
    config, weights = model.config, model.weights
    graph = GraphBuilder("llama_decoder", float_type)
    hidden = graph.input("embeddings", np.float32, ["rows", "tokens", config.embedding_size])
    graph.input("positions", np.int64, ["rows", "tokens"])
    graph.input("write_index", np.int64, ["rows"])
    wanted = graph.input("wanted", np.int64, ["wanted", 2])
    attending = attention(graph, config, max_positions)

    def norm(value: str, name: str) -> str:
        return graph.node("RMSNormalization", value, graph.weight(name, weights[name]), axis=-1, epsilon=config.norm_epsilon)

    if on_device:
        hidden = _embed_tokens(graph, hidden, weights[EMBEDDING])
    if INPUT_ROTATION in weights:
        hidden = _rotate(graph, hidden, weights[INPUT_ROTATION])
    all_written = []
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        query, key, value = (weights[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv")
        query_key_value = np.concatenate([attending.order_heads(query), key, value])
        slots = SlotPair(*(graph.input(f"{name}_{layer}", graph.float_type, attending.slot_shape) for name in ("key", "value")))
        normed = norm(hidden, f"{prefix}input_layernorm.weight")
        packed = body(graph, normed, f"{prefix}self_attn.qkv_proj.weight", query_key_value)
        if f"{prefix}self_attn.q_proj.bias" in weights:
            query, key, value = (weights[f"{prefix}self_attn.{name}_proj.bias"] for name in "qkv")
            bias = np.concatenate([attending.order_heads(query[:, None])[:, 0], key, value])
            packed = graph.node("Add", packed, graph.weight(f"{prefix}self_attn.qkv_proj.bias", bias))
        attended, written = attending.attend(packed, slots)
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
    if on_device:
        graph.output(graph.node("ArgMax", logits, axis=-1, keepdims=0), "next_tokens", np.int64, ["wanted"])
    graph.output(logits, "logits", np.float32, ["wanted", config.vocabulary_size])
    for layer, written in enumerate(all_written):
        graph.output(written.key, f"key_out_{layer}", graph.float_type, attending.slot_shape)
        graph.output(written.value, f"value_out_{layer}", graph.float_type, attending.slot_shape)
    return graph


def embedding_table(model: Llama, dtype: npt.DTypeLike = np.float16) -> npt.NDArray[np.floating]:
    """The input embeddings [vocabulary, D] to save as `.npy` for `OnnxLLM`; float16 halves the file at 11 bits of precision."""
    return model.weights[EMBEDDING].astype(dtype)


def _embed_tokens(graph: GraphBuilder, embeddings: str, table: Float32) -> str:
    """`embeddings` with those of `tokens` in the places where there is one."""
    tokens = graph.input("tokens", np.int64, ["rows", "tokens"])
    zero = graph.weight("tokens.none", np.array(0, np.int64))
    looked_up = graph.node("Gather", graph.weight(EMBEDDING, table), graph.node("Max", tokens, zero))
    there = graph.node("Unsqueeze", graph.node("Less", tokens, zero), graph.weight("tokens.axis", np.array([2], np.int64)))
    return graph.node("Where", there, embeddings, looked_up)


def _rotate(graph: GraphBuilder, hidden: str, rotation: Float32) -> str:
    """The product in float32 of at least two rows: of one alone ONNX Runtime would compute other last bits."""
    twice = float32_linear(graph, graph.node("Concat", hidden, hidden, axis=1), INPUT_ROTATION, rotation)
    return graph.nodes("Split", twice, outputs=2, axis=1, num_outputs=2)[0]
