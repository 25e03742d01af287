"""Write what conformers have in common (arXiv 2005.08100) as parts of an ONNX graph: rows of states, one utterance at a time."""

import numpy as np

from models.graph.layers import LayerWriter
from models.graph.linear import Float32


class ConformerWriter(LayerWriter):
    """Adds a conformer's parts to a graph. `weights` are found by the names of the family."""

    def mix_frames(self, doubled: str, name: str, weight: Float32, bias: Float32) -> str:
        """Write the convolution module between its linear layers: rows [frames, 2 * channels] become [frames, channels].

        `weight` [channels, 1, size] and `bias` [channels] are the depthwise convolution's. The batch normalisation after it, of
        the module `name`, is written into them.
        """
        weight, bias = self._normalised(f"{name}.batch_norm", weight, bias)
        return self.silu(self.gate_frames(doubled, name, weight, bias, before=weight.shape[2] // 2))

    def gate_frames(self, doubled: str, name: str, weight: Float32, bias: Float32, before: int) -> str:
        """Write a gated linear unit and a depthwise convolution, which reads `before` frames before each."""
        graph = self.graph
        value, gate = graph.nodes("Split", doubled, outputs=2, axis=-1, num_outputs=2)
        gated = graph.node("Mul", value, graph.node("Sigmoid", gate))
        by_channel = graph.node("Unsqueeze", graph.node("Transpose", gated, perm=[1, 0]), graph.integers(0))
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
        return graph.node("Transpose", graph.node("Squeeze", mixed, graph.integers(0)), perm=[1, 0])

    def _normalised(self, name: str, weight: Float32, bias: Float32) -> tuple[Float32, Float32]:
        norm = {part: self.weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
        gain = norm["weight"] / np.sqrt(norm["running_var"] + np.float32(self.norm_epsilon))
        shifted = (bias - norm["running_mean"]) * gain + norm["bias"]
        return (weight * gain[:, None, None]).astype(np.float32), shifted.astype(np.float32)

    def silu(self, x: str) -> str:
        return self.graph.node("Mul", x, self.graph.node("Sigmoid", x))
