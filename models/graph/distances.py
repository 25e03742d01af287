"""Scores by how far apart query and key are, for attention with relative positions."""

import numpy as np

from models.graph.writer import GraphBuilder


def scores_of_distances(graph: GraphBuilder, columns: str, span: str) -> str:
    """Return the scores [a, b, span, span] out of `columns` [a, b, span, 2 * span - 1], of distances span - 1 down to 1 - span.

    Row i of the scores begins at column span - 1 - i, whose distance is i. One row of all columns is one longer than two spans
    less two: cut apart again with rows one shorter, each row begins where it should. `span` is a list of one integer.
    """
    flat = graph.node("Reshape", columns, _numbers(graph, 0, 0, -1))
    before = graph.node("Sub", span, _numbers(graph, 1))
    shorter = graph.node("Mul", before, _numbers(graph, 2))
    end = graph.node("Add", before, graph.node("Mul", span, shorter))
    # The row of a span of one is none shorter: its one column is the score.
    kept = graph.node("Max", shorter, _numbers(graph, 1))
    end = graph.node("Max", end, _numbers(graph, 1))
    cut = graph.node("Slice", flat, before, end, _numbers(graph, 2))
    rows = graph.node("Concat", _numbers(graph, 0, 0), span, kept, axis=0)
    return graph.node("Slice", graph.node("Reshape", cut, rows), _numbers(graph, 0), span, _numbers(graph, 3))


def _numbers(graph: GraphBuilder, *numbers: int) -> str:
    return graph.weight(f"numbers.{'.'.join(map(str, numbers))}", np.array(numbers, np.int64))
