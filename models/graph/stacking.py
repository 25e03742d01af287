"""Stacking of neighbouring encoder states into one longer vector."""

import numpy as np

from models.graph.writer import GraphBuilder


def stack_states(graph: GraphBuilder, states: str, width: int, count: int) -> str:
    """Turn states [n, width] into [ceil(n / count), count * width]; zeros fill the last one."""
    zeros = graph.weight("stack.zeros", np.zeros((count - 1, width), np.float32))
    padded = graph.node("Concat", states, zeros, axis=0)
    number = graph.weight("stack.count", np.array([count], np.int64))
    length = graph.node("Mul", graph.node("Div", graph.node("Shape", padded, start=0, end=1), number), number)
    start = graph.weight("stack.start", np.array([0], np.int64))
    whole = graph.node("Slice", padded, start, length, start)
    return graph.node("Reshape", whole, graph.weight("stack.shape", np.array([-1, count * width], np.int64)))
