"""Rotary embedding, slot update and causal attention of the llama decoder, in two forms with one interface.

Both see packed query, key and value [B, S, (heads + 2 * key_value_heads) * h], whose weights they may have reordered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from export.gguf_weights import LlamaConfig
from export.graph import GraphBuilder, Shape
from models.runtimes.onnx.llm import SPAN_STEP

Float32 = npt.NDArray[np.float32]

MASKED = np.float32(-1e30)
"""Added to the scores of positions that are not seen: their weight is exactly 0, and no infinity can make a NaN."""


@dataclass(frozen=True)
class SlotPair:
    """The names of one layer's keys and values."""

    key: str
    value: str


class Attention(Protocol):
    """Writes the attention of all layers of one graph; made once per graph, where it declares the inputs that it needs."""

    slot_shape: Shape

    def order_heads(self, weight: Float32) -> Float32:
        """The query's weight, or the output's transposed, [heads * h, D], with its heads in the order of `attend`."""
        ...

    def attend(self, packed: str, slots: SlotPair) -> tuple[str, SlotPair]:
        """Attended values [B, S, heads * h] and the slots as written."""
        ...


AttentionWriter = Callable[[GraphBuilder, LlamaConfig, int], Attention]
"""Starts the attention of a graph with slots of so many positions; `positions` and `write_index` are declared already."""


class StandardAttention:
    """ONNX's `Attention` over slots [B, key_value_heads, P, h] as they are: what TensorRT runs, and the simplest to be right.

    Needs the input `kv_length` [B] = write_index + S. ONNX Runtime's CPU kernel computes over whole slots.
    """

    def __init__(self, graph: GraphBuilder, config: LlamaConfig, max_positions: int) -> None:
        self.graph, self.config, self.max_positions = graph, config, max_positions
        self.slot_shape: Shape = ["rows", config.key_value_heads, max_positions, config.head_size]
        graph.input("kv_length", np.int64, ["rows"])

    def order_heads(self, weight: Float32) -> Float32:
        return weight

    def attend(self, packed: str, slots: SlotPair) -> tuple[str, SlotPair]:
        graph, heads, kv_heads, head_size = self.graph, self.config.heads, self.config.key_value_heads, self.config.head_size
        split_shape = graph.weight("heads.split", np.array([0, 0, heads + 2 * kv_heads, head_size], np.int64))
        by_head = graph.node("Transpose", graph.node("Reshape", packed, split_shape), perm=[0, 2, 1, 3])
        turning_value = graph.weight("heads.turning_value", np.array([heads + kv_heads, kv_heads], np.int64))
        turning, value = graph.nodes("Split", by_head, turning_value, outputs=2, axis=1)
        turned = graph.node("RotaryEmbedding", turning, *rotary_tables(graph, self.config, self.max_positions), "positions")
        query_key = graph.weight("heads.query_key", np.array([heads, kv_heads], np.int64))
        query, key = graph.nodes("Split", turned, query_key, outputs=2, axis=1)
        written = SlotPair(
            graph.node("TensorScatter", slots.key, key, "write_index", axis=2),
            graph.node("TensorScatter", slots.value, value, "write_index", axis=2),
        )
        attended = graph.node("Attention", query, written.key, written.value, "", "", "", "kv_length", is_causal=1)
        joined_shape = graph.weight("heads.joined", np.array([0, 0, heads * head_size], np.int64))
        return graph.node("Reshape", graph.node("Transpose", attended, perm=[0, 2, 1, 3]), joined_shape), written


class ExactAttention:
    """Slots [B, P, key_value_heads * h], of which the first `span` positions are computed; the same bits however it is cut.

    Needs the input `span` [1], a multiple of `SPAN_STEP` that no row's last position reaches. Query heads that share a key
    head are so many rows of one product. With at least two of them ONNX Runtime's float products give a row the same bits
    beside any number of others; a product of one row takes another path, so where each query head has a key head of its own
    every row is computed twice. Positions that are masked add exact zeros at the end of each sum, whatever the span.
    """

    def __init__(self, graph: GraphBuilder, config: LlamaConfig, max_positions: int) -> None:
        if max_positions % SPAN_STEP:
            raise ValueError(f"{max_positions} positions are not a multiple of {SPAN_STEP}")
        self.graph, self.config = graph, config
        self.slot_shape: Shape = ["rows", max_positions, config.key_value_heads * config.head_size]
        self.rotary = rotary_tables(graph, config, max_positions)
        self.sharing = config.heads // config.key_value_heads
        self.copies = 2 if self.sharing == 1 else 1
        self.mask = self._mask(graph.input("span", np.int64, [1]))

    def order_heads(self, weight: Float32) -> Float32:
        """From key head by key head to the first query head of each key head, then the second, and so on."""
        config = self.config
        by_head = weight.reshape(config.key_value_heads, self.sharing, config.head_size, -1)
        return np.ascontiguousarray(by_head.swapaxes(0, 1).reshape(weight.shape))

    def attend(self, packed: str, slots: SlotPair) -> tuple[str, SlotPair]:
        graph, kv_heads = self.graph, self.config.key_value_heads
        width, kv_width = self.config.heads * self.config.head_size, kv_heads * self.config.head_size
        turning, value = graph.nodes("Split", packed, self._sizes(width + kv_width, kv_width), outputs=2, axis=-1)
        turned = graph.node("RotaryEmbedding", turning, *self.rotary, "positions", num_heads=self.config.heads + kv_heads)
        query, key = graph.nodes("Split", turned, self._sizes(width, kv_width), outputs=2, axis=-1)
        written = SlotPair(
            graph.node("TensorScatter", slots.key, key, "write_index", axis=1),
            graph.node("TensorScatter", slots.value, value, "write_index", axis=1),
        )
        if self.copies > 1:
            query = graph.node("Concat", *[query] * self.copies, axis=-1)
        attended = graph.node(
            "Attention",
            graph.node("Reshape", query, self._sizes(0, -1, kv_width)),
            *(graph.node("Slice", each, self._sizes(0), "span", self._sizes(1)) for each in (written.key, written.value)),
            self.mask,
            q_num_heads=kv_heads,
            kv_num_heads=kv_heads,
        )
        attended = graph.node("Reshape", attended, self._sizes(0, -1, self.copies * width))
        if self.copies > 1:
            attended = graph.nodes("Split", attended, outputs=self.copies, axis=-1, num_outputs=self.copies)[0]
        return attended, written

    def _mask(self, span: str) -> str:
        """[B, 1, S * rows per position, span]: a query at a position sees the slot up to that position."""
        graph = self.graph
        first, step = (graph.weight(f"mask.{number}", np.array(number, np.int64)) for number in (0, 1))
        seen = graph.node("Range", first, graph.node("Squeeze", span), step)
        each = graph.node("Unsqueeze", "positions", self._sizes(2))
        repeated = graph.node("Expand", each, self._sizes(1, 1, self.sharing * self.copies))
        positions = graph.node("Reshape", repeated, self._sizes(0, 1, -1, 1))
        values = (graph.weight(f"mask.{name}", np.array(value)) for name, value in (("out", MASKED), ("in", np.float32(0))))
        return graph.node("Where", graph.node("Greater", seen, positions), *values)

    def _sizes(self, *sizes: int) -> str:
        """A constant list of integers."""
        return self.graph.weight(f"sizes.{'.'.join(map(str, sizes))}", np.array(sizes, np.int64))


def rotary_tables(graph: GraphBuilder, config: LlamaConfig, max_positions: int) -> tuple[str, str]:
    """Cosines and sines [max_positions, h / 2], computed in float64."""
    frequencies = config.rope_theta ** (-np.arange(0, config.head_size, 2) / config.head_size)
    angles = np.arange(max_positions)[:, None] * frequencies
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return graph.weight("rotary.cos", cosines), graph.weight("rotary.sin", sines)
