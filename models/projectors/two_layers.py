"""Write a projector of two linear layers with GELU between them as an ONNX graph (Qwen3-ASR; Voxtral, which stacks states).

states [n, encoder_width] float32              in
frames [ceil(n / subsampling), embedding_size] out
"""

from collections.abc import Mapping

import numpy as np

from models.bundle.sections import FrameProjectorSection
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.stacking import stack_states
from models.graph.writer import GraphBuilder


class TwoLayersSection(FrameProjectorSection):
    """A projector of two layers in `bundle.json`."""


def build_projector(
    weights: Mapping[str, Float32], encoder_width: int, stacked: int = 1, linear: Linear = float32_linear
) -> GraphBuilder:
    """Return the graph described above, of `linear_1.weight` and `linear_2.weight`, each with a `.bias` or without."""
    graph = GraphBuilder("two_layer_projector")
    states = graph.input("states", np.float32, ["states", encoder_width])

    def layer(value: str, name: str) -> str:
        product = linear(graph, value, f"{name}.weight", weights[f"{name}.weight"])
        bias = f"{name}.bias"
        return graph.node("Add", product, graph.weight(bias, weights[bias])) if bias in weights else product

    stack = states if stacked == 1 else stack_states(graph, states, encoder_width, stacked)
    frames = layer(graph.node("Gelu", layer(stack, "linear_1")), "linear_2")
    graph.output(frames, "frames", np.float32, ["frames", len(weights["linear_2.weight"])])
    return graph
