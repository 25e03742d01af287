"""Write a projector of one linear layer as an ONNX graph (Qwen2-Audio).

states [n, encoder_width] float32  in
frames [n, embedding_size] float32 out
"""

from collections.abc import Mapping

import numpy as np

from models.bundle.sections import FrameProjectorSection
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder


class LinearSection(FrameProjectorSection):
    """A linear projector in `bundle.json`."""


def build_projector(weights: Mapping[str, Float32], linear: Linear = float32_linear) -> GraphBuilder:
    """Return the graph described above, of `weight` [embedding_size, encoder_width] and `bias`."""
    graph, weight = GraphBuilder("linear_projector"), weights["weight"]
    states = graph.input("states", np.float32, ["states", weight.shape[1]])
    product = linear(graph, states, "weight", weight)
    frames = graph.node("Add", product, graph.weight("bias", weights["bias"]))
    graph.output(frames, "frames", np.float32, ["frames", len(weight)])
    return graph
