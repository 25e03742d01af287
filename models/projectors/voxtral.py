"""Write Voxtral's projector as an ONNX graph: four states stacked, and two linear layers with GELU between them.

states [n, encoder_width] float32              in
frames [ceil(n / subsampling), embedding_size] out
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from models.bundle.schema import FrameProjectorSection
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.stacking import stack_states
from models.graph.writer import GraphBuilder


class VoxtralSection(FrameProjectorSection):
    """Voxtral's projector in `bundle.json`. The LLM was trained on the frames of the silence that fills 30 s, too."""

    reads_padding: ClassVar[bool] = True


def build_projector(
    weights: Mapping[str, Float32], encoder_width: int, stacked: int, linear: Linear = float32_linear
) -> GraphBuilder:
    """Return the graph described above. `weights` have the names of the checkpoint, such as `linear_1.weight`."""
    graph = GraphBuilder("voxtral_projector")
    states = graph.input("states", np.float32, ["states", encoder_width])
    stack = stack_states(graph, states, encoder_width, stacked)
    first, last = "linear_1.weight", "linear_2.weight"
    hidden = graph.node("Gelu", linear(graph, stack, first, weights[first]))
    graph.output(linear(graph, hidden, last, weights[last]), "frames", np.float32, ["frames", len(weights[last])])
    return graph
