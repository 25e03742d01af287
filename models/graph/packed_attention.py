"""Attention of packed rows over key/value slots: the half of a decoder that reads what it has written."""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from models.graph.linear import Float32
from models.graph.writer import MASKED, GraphBuilder, Shape

SPAN_STEP = 64
"""Attention covers the first positions of the slots in steps of this many, so that every sum is cut at the same places."""


@dataclass(frozen=True)
class SlotPair:
    """The names of one layer's keys and values."""

    key: str
    value: str

    @classmethod
    def declare(cls, graph: GraphBuilder, layer: int, shape: Shape) -> Self:
        """Add a layer's slots to the inputs of a graph."""
        return cls(*(graph.input(f"{name}_{layer}", graph.float_type, shape) for name in ("key", "value")))

    def write(self, graph: GraphBuilder, key: str, value: str, axis: int) -> Self:
        """Return the slots with new keys and values; `axis` is that of positions."""
        written = (
            graph.node("TensorScatter", slot, new, "write_index", axis=axis)
            for slot, new in ((self.key, key), (self.value, value))
        )
        return type(self)(*written)

    def output(self, graph: GraphBuilder, layer: int, shape: Shape) -> None:
        """Make the pair the outputs of a layer."""
        for name, value in (("key", self.key), ("value", self.value)):
            graph.output(value, f"{name}_out_{layer}", graph.float_type, shape)


class HeadShape(Protocol):
    """The shape of an attention's heads, a part of every family's configuration."""

    @property
    def heads(self) -> int: ...

    @property
    def key_value_heads(self) -> int: ...

    @property
    def head_size(self) -> int: ...


class PackedAttention:
    """Attention over packed rows, with no embedding of positions.

    Its results are the same bits however a sequence is cut and whatever runs beside it.

    Slots are [B, P, key_value_heads * h], of which the first `span` positions are computed. The inputs are:

        span   [1]     a multiple of `SPAN_STEP`, at least write_index + S of every row
        places [B, S]  which of the T packed positions stands where; padding repeats a row's last position
        kept   [T]     where each packed position stands, in B * S

    Query heads that share a key head are rows of one product. With at least two of them ONNX Runtime's float products
    give a row the same bits beside any number of others; a product of one row takes another path, so where each query head has a
    key head of its own every row is computed twice. Positions that are masked add exact zeros at the end of each sum, whatever
    the span.
    """

    layout: Shape = ("positions",)

    def __init__(self, graph: GraphBuilder, config: HeadShape, max_positions: int) -> None:
        if max_positions % SPAN_STEP:
            raise ValueError(f"{max_positions} positions are not a multiple of {SPAN_STEP}")
        self.graph, self.config, self.max_positions = graph, config, max_positions
        self.slot_shape: Shape = ["rows", max_positions, config.key_value_heads * config.head_size]
        self.sharing = config.heads // config.key_value_heads
        self.copies = 2 if self.sharing == 1 else 1
        graph.input("places", np.int64, ["rows", "tokens"])
        graph.input("kept", np.int64, ["positions"])
        self.mask = self.write_mask(graph.input("span", np.int64, [1]))

    def order_heads(self, weight: Float32) -> Float32:
        """Return weights with the first query head of each key head first, then the second of each, and so on."""
        config = self.config
        by_head = weight.reshape(config.key_value_heads, self.sharing, config.head_size, -1)
        return np.ascontiguousarray(by_head.swapaxes(0, 1).reshape(weight.shape))

    def attend(self, projected: str, slots: SlotPair, *, turns: bool = True) -> tuple[str, SlotPair]:
        graph, kv_heads = self.graph, self.config.key_value_heads
        width, kv_width = self.config.heads * self.config.head_size, kv_heads * self.config.head_size
        padded = graph.node("Gather", projected, "places", axis=0)
        turning, value = graph.nodes("Split", padded, self._sizes(width + kv_width, kv_width), outputs=2, axis=-1)
        query, key = graph.nodes(
            "Split", self.turn(turning) if turns else turning, self._sizes(width, kv_width), outputs=2, axis=-1
        )
        written = slots.write(graph, key, value, axis=1)
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
        attended = graph.node("Gather", graph.node("Reshape", attended, self._sizes(-1, self.copies * width)), "kept", axis=0)
        if self.copies > 1:
            attended = graph.nodes("Split", attended, outputs=self.copies, axis=-1, num_outputs=self.copies)[0]
        return attended, written

    def turn(self, projected: str) -> str:
        """Return queries and keys [B, S, (heads + key_value_heads) * h] turned by their positions: here, as they are."""
        return projected

    def write_mask(self, span: str) -> str:
        """Return the mask [B, 1, S * rows per position, span]: a query at a position sees the slot up to that position."""
        graph = self.graph
        seen = self.slot_positions(span)
        positions = graph.node("Reshape", self.row_positions(), self._sizes(0, 1, -1, 1))
        values = (graph.weight(f"mask.{name}", np.array(value)) for name, value in (("out", MASKED), ("in", np.float32(0))))
        return graph.node("Where", graph.node("Greater", seen, positions), *values)

    def slot_positions(self, span: str) -> str:
        """Return the positions [span] of the keys."""
        first, step = (self.graph.weight(f"mask.{number}", np.array(number, np.int64)) for number in (0, 1))
        return self.graph.node("Range", first, self.graph.node("Squeeze", span), step)

    def row_positions(self) -> str:
        """Return the position of each query row [B, S, rows per position]."""
        each = self.graph.node("Unsqueeze", "positions", self._sizes(2))
        return self.graph.node("Expand", each, self._sizes(1, 1, self.sharing * self.copies))

    def _sizes(self, *sizes: int) -> str:
        return self.graph.integers(*sizes, name="sizes")
