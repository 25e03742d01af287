"""Attention of packed rows to memory that was written once for each slot: the half of a decoder that reads an encoder.

Beside the inputs of `models.graph.packed_attention.PackedAttention` the graph gets, for memory that is padded to C states:

    cross_key_i, cross_value_i  [B, C, width] float32
    memory_length               [B] int64              how many states of each row are true

A position's results are the same bits whatever else runs, however the tokens are cut, and however long the padding is.
"""

import numpy as np

from models.graph.silent_rest import SilentRest
from models.graph.writer import MASKED, GraphBuilder

COPIES = 2
"""Times that each query row is computed: a product of one row takes another path, with other last bits."""


class CrossAttention:
    """The cross-attention of all layers of one graph, which declares its inputs.

    With `rest` the last true states are those of the silence behind the audio.
    """

    def __init__(self, graph: GraphBuilder, layers: int, heads: int, width: int, rest: SilentRest | None = None) -> None:
        self._graph, self._heads, self._width, self._rest = graph, heads, width, rest
        graph.input("memory_length", np.int64, ["rows"])
        self._memory = [
            [graph.input(f"cross_{name}_{layer}", np.float32, ["rows", "memory", width]) for name in ("key", "value")]
            for layer in range(layers)
        ]
        self._mask = self._write_mask(self._memory[0][0])

    def attend(self, query: str, layer: int) -> str:
        """Return [T, width]: the attention of packed queries to the memory of their rows."""
        graph, heads = self._graph, self._heads
        padded = graph.node("Gather", query, "places", axis=0)
        doubled = graph.node("Reshape", graph.node("Concat", *[padded] * COPIES, axis=-1), self._sizes(0, -1, self._width))
        attended = graph.node("Attention", doubled, *self._memory[layer], self._mask, q_num_heads=heads, kv_num_heads=heads)
        by_place = graph.node("Reshape", attended, self._sizes(-1, COPIES * self._width))
        packed = graph.node("Gather", by_place, "kept", axis=0)
        return graph.nodes("Split", packed, outputs=COPIES, axis=-1, num_outputs=COPIES)[0]

    def _write_mask(self, memory: str) -> str:
        """Return [B, 1, S * COPIES, C]: a position sees all true states of its row, those of silence as often as they count."""
        graph = self._graph
        zero, one = (graph.weight(f"memory.{number}", np.array(number, np.int64)) for number in (0, 1))
        states = graph.node("Squeeze", graph.node("Shape", memory, start=1, end=2))
        length = graph.node("Unsqueeze", "memory_length", self._sizes(1, 2, 3))
        numbers = graph.node("Range", zero, states, one)
        if self._rest is None:
            values = (graph.weight(f"memory.{name}", np.array(value)) for name, value in (("in", np.float32(0)), ("out", MASKED)))
            mask = graph.node("Where", graph.node("Less", numbers, length), *values)
        else:
            mask = self._rest.write_bias(graph, length, numbers)
        tokens = graph.node("Mul", graph.node("Shape", "positions", start=1, end=2), self._sizes(COPIES))
        return graph.node("Expand", mask, graph.node("Concat", self._sizes(1, 1), tokens, self._sizes(1), axis=0))

    def _sizes(self, *sizes: int) -> str:
        return self._graph.integers(*sizes, name="crossing")
