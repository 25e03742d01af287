"""Layers that most families write alike."""

from collections.abc import Mapping

from models.graph.linear import Float32, Linear
from models.graph.writer import GraphBuilder


class LayerWriter:
    """Adds layers to `graph`. Weights are found as `NAME.weight` and `NAME.bias`; products are written by `write_linear`."""

    norm_epsilon = 1e-5

    def __init__(self, graph: GraphBuilder, weights: Mapping[str, Float32], write_linear: Linear) -> None:
        self.graph, self.weights, self.write_linear = graph, weights, write_linear

    def weight(self, name: str) -> str:
        return self.graph.weight(name, self.weights[name])

    def norm(self, x: str, name: str) -> str:
        """Write a layer normalisation."""
        parts = (self.weight(f"{name}.{part}") for part in ("weight", "bias"))
        return self.graph.node("LayerNormalization", x, *parts, epsilon=self.norm_epsilon)

    def linear(self, x: str, name: str) -> str:
        """Write a linear layer with its bias. A convolution of size one is such a layer too."""
        return self.graph.node("Add", self.product(x, name), self.weight(f"{name}.bias"))

    def product(self, x: str, name: str) -> str:
        """Write a linear layer without a bias."""
        weight = self.weights[f"{name}.weight"]
        return self.write_linear(self.graph, x, f"{name}.weight", weight.reshape(weight.shape[:2]))
