"""Scores by how far apart query and key are, for attention with relative positions."""

from models.graph.writer import GraphBuilder


def scores_of_distances(graph: GraphBuilder, columns: str, span: str) -> str:
    """Return the scores [a, b, span, span] out of `columns` [a, b, span, 2 * span - 1], of distances span - 1 down to 1 - span.

    Row i of the scores begins at column span - 1 - i, whose distance is i. One row of all columns is one longer than two spans
    less two: cut apart again with rows one shorter, each row begins where it should. `span` is a list of one integer.
    """
    flat = graph.node("Reshape", columns, graph.integers(0, 0, -1))
    before = graph.node("Sub", span, graph.integers(1))
    shorter = graph.node("Mul", before, graph.integers(2))
    end = graph.node("Add", before, graph.node("Mul", span, shorter))
    # The row of a span of one is none shorter: its one column is the score.
    kept = graph.node("Max", shorter, graph.integers(1))
    end = graph.node("Max", end, graph.integers(1))
    cut = graph.node("Slice", flat, before, end, graph.integers(2))
    rows = graph.node("Concat", graph.integers(0, 0), span, kept, axis=0)
    return graph.node("Slice", graph.node("Reshape", cut, rows), graph.integers(0), span, graph.integers(3))
