"""Write what conformers have in common (arXiv 2005.08100) as parts of an ONNX graph: rows of states, one utterance at a time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from models.graph.linear import Float32
from models.graph.writer import GraphBuilder

NORM_EPSILON = 1e-5


class ConformerWriter(ABC):
    """Adds a conformer's parts to `graph`. `weights` are found by the names of the family."""

    def __init__(self, graph: GraphBuilder, weights: Mapping[str, Float32]) -> None:
        self.graph, self.weights = graph, weights

    @abstractmethod
    def linear(self, x: str, name: str) -> str:
        """Write a linear layer with its bias."""

    def mix_frames(self, doubled: str, name: str, weight: Float32, bias: Float32) -> str:
        """Write the convolution module between its linear layers: rows [frames, 2 * channels] become [frames, channels].

        `weight` [channels, 1, size] and `bias` [channels] are the depthwise convolution's. The batch normalisation after it, of
        the module `name`, is written into them.
        """
        weight, bias = self._normalised(f"{name}.batch_norm", weight, bias)
        return self.silu(self.gate_frames(doubled, name, weight, bias, before=weight.shape[2] // 2))

    def gate_frames(self, doubled: str, name: str, weight: Float32, bias: Float32, before: int) -> str:
        """Write a gated linear unit and a depthwise convolution, which hears so many frames `before` each."""
        graph = self.graph
        value, gate = graph.nodes("Split", doubled, outputs=2, axis=-1, num_outputs=2)
        gated = graph.node("Mul", value, graph.node("Sigmoid", gate))
        by_channel = graph.node("Unsqueeze", graph.node("Transpose", gated, perm=[1, 0]), self.numbers(0))
        channels, _, size = weight.shape
        mixed = graph.node(
            "Conv",
            by_channel,
            graph.weight(f"{name}.depth_conv", weight),
            graph.weight(f"{name}.depth_bias", bias),
            kernel_shape=[size],
            pads=[before, size - 1 - before],
            group=channels,
        )
        return graph.node("Transpose", graph.node("Squeeze", mixed, self.numbers(0)), perm=[1, 0])

    def _normalised(self, name: str, weight: Float32, bias: Float32) -> tuple[Float32, Float32]:
        norm = {part: self.weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
        gain = norm["weight"] / np.sqrt(norm["running_var"] + np.float32(NORM_EPSILON))
        shifted = (bias - norm["running_mean"]) * gain + norm["bias"]
        return (weight * gain[:, None, None]).astype(np.float32), shifted.astype(np.float32)

    def norm(self, x: str, name: str) -> str:
        parts = (self.graph.weight(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.graph.node("LayerNormalization", x, *parts, epsilon=NORM_EPSILON)

    def silu(self, x: str) -> str:
        return self.graph.node("Mul", x, self.graph.node("Sigmoid", x))

    def numbers(self, *numbers: int) -> str:
        """Return a constant list of integers."""
        return self.graph.weight(f"numbers.{'.'.join(map(str, numbers))}", np.array(numbers, np.int64))
