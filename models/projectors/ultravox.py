"""Write Ultravox's projector as an ONNX graph: stacked states, a gated layer between two RMS normalisations, a linear layer.

    states [n, encoder_width] float32              in
    frames [ceil(n / subsampling), embedding_size] out

The later releases normalise before the last layer (`ln_mid`), the earlier ones behind it (`ln_post`).
"""

from collections.abc import Mapping

import numpy as np

from models.bundle.sections import FrameProjectorSection
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.stacking import stack_states
from models.graph.writer import GraphBuilder

EPSILON = 1e-6


class UltravoxSection(FrameProjectorSection):
    """Ultravox's projector in `bundle.json`."""


def build_projector(
    weights: Mapping[str, Float32], encoder_width: int, stacked: int, linear: Linear = float32_linear
) -> GraphBuilder:
    """Return the graph described above. `weights` have the names of the checkpoint, such as `linear_1.weight`."""
    graph = GraphBuilder("ultravox_projector")
    states = graph.input("states", np.float32, ["states", encoder_width])

    def norm(value: str, name: str) -> str:
        return graph.node("RMSNormalization", value, graph.weight(name, weights[name]), axis=-1, epsilon=EPSILON)

    hidden = norm(stack_states(graph, states, encoder_width, stacked), "ln_pre.weight")
    first, last = (linear_name for linear_name in ("linear_1.weight", "linear_2.weight"))
    value, gate = graph.nodes("Split", linear(graph, hidden, first, weights[first]), outputs=2, axis=-1, num_outputs=2)
    hidden = graph.node("Mul", value, graph.node("Mul", gate, graph.node("Sigmoid", gate)))
    if "ln_mid.weight" in weights:
        hidden = norm(hidden, "ln_mid.weight")
    frames = linear(graph, hidden, last, weights[last])
    if "ln_post.weight" in weights:
        frames = norm(frames, "ln_post.weight")
    graph.output(frames, "frames", np.float32, ["frames", len(weights[last])])
    return graph
