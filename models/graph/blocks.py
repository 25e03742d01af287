"""Sequences that are cut into blocks, of which the last may be padded."""

import numpy as np

from models.graph.writer import MASKED, GraphBuilder


def pad_to_blocks(graph: GraphBuilder, values: str, length: str, size: str, axis: int) -> str:
    """Return values with zeros behind them, along one of their first two axes, up to a multiple of `size`.

    `length` is how long they are; both are lists of one integer.
    """
    missing = graph.node("Mod", graph.node("Neg", length), size)
    return graph.node("Pad", values, graph.node("Concat", graph.integers(0), missing, axis=0), "", graph.integers(axis))


def mask_padding(graph: GraphBuilder, length: str, size: str) -> tuple[str, str]:
    """Return what is added to the scores [blocks, 1, 1, size], so that padding is not seen, and the number of blocks [1]."""
    blocks = graph.node("Div", graph.node("Add", length, graph.node("Sub", size, graph.integers(1))), size)
    first, step = (graph.weight(f"mask.{number}", np.array(number, np.int64)) for number in (0, 1))
    places = graph.node("Range", first, graph.node("Squeeze", graph.node("Mul", blocks, size)), step)
    places = graph.node("Reshape", places, graph.node("Concat", blocks, graph.integers(1, 1), size, axis=0))
    values = (graph.weight(f"mask.{name}", np.array(value)) for name, value in (("in", np.float32(0)), ("out", MASKED)))
    return graph.node("Where", graph.node("Less", places, length), *values), blocks
