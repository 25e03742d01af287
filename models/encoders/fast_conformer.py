"""Write NeMo's FastConformer as an ONNX graph (arXiv 2305.05084): the encoder of Canary-Qwen and Parakeet.

    features [mel bins, frames] float32  in   of one utterance
    states   [states, width]    float32  out  12.5 a second, at most `longest`

Convolutions halve time three times; then come conformer layers whose attention sees the whole utterance, with the relative
positions of Transformer-XL (arXiv 1901.02860).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.bundle.sections import MelEncoderSection
from models.graph.conformer import ConformerWriter
from models.graph.distances import scores_of_distances
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder

SLOWEST_PERIOD = 10_000.0
SUBSAMPLING = 8
CONVOLUTIONS = (("0",), ("2", "3"), ("5", "6"))
"""Of each halving: a convolution over time and bins, then, but for the first, one that mixes channels."""
BY_CHANNEL = ("2", "5")


class FastConformerSection(MelEncoderSection):
    """FastConformer in `bundle.json`."""

    features = "nemo_mel"


@dataclass(frozen=True)
class FastConformerConfig:
    """The shape of an encoder. `longest` is how many states an utterance may have; `scale` multiplies what enters the layers."""

    layers: int
    heads: int
    longest: int
    scale: float = 1.0


def relative_positions(longest: int, width: int) -> Float32:
    """Return sines and cosines, by turns, of the distances longest - 1 down to 1 - longest [2 * longest - 1, width]."""
    distances = np.arange(longest - 1, -longest, -1)
    angles = distances[:, None] * SLOWEST_PERIOD ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(distances), width).astype(np.float32)


class FastConformerWriter(ConformerWriter):
    """Adds the encoder's parts to a graph. `weights` have NeMo's names without `encoder.`; biases may be missing."""

    def __init__(self, config: FastConformerConfig, weights: Mapping[str, Float32], linear: Linear) -> None:
        super().__init__(GraphBuilder("fast_conformer"), weights, linear)
        self.config = config
        self.width = len(weights["pre_encode.out.weight"])
        self.head_size = self.width // config.heads
        self.positions = relative_positions(config.longest, self.width)

    def build(self, mel_bins: int) -> GraphBuilder:
        graph = self.graph
        features = graph.input("features", np.float32, [mel_bins, "frames"])
        states = self.subsample(graph.node("Transpose", features, perm=[1, 0]))
        self.count = graph.node("Shape", states, start=0, end=1)
        for layer in range(self.config.layers):
            states = self.layer(states, f"layers.{layer}")
        graph.output(states, "states", np.float32, ["states", self.width])
        return graph

    def subsample(self, rows: str) -> str:
        """Turn rows [frames, bins] into states [frames / 8, width]."""
        graph = self.graph
        image = graph.node("Unsqueeze", rows, graph.integers(0, 1))
        for names in CONVOLUTIONS:
            for name in names:
                weight = self.weights[f"pre_encode.conv.{name}.weight"]
                mixes = weight.shape[2:] == (1, 1)
                image = graph.node(
                    "Conv",
                    image,
                    graph.weight(f"pre_encode.conv.{name}.weight", weight),
                    graph.weight(f"pre_encode.conv.{name}.bias", self.weights[f"pre_encode.conv.{name}.bias"]),
                    kernel_shape=list(weight.shape[2:]),
                    strides=[1, 1] if mixes else [2, 2],
                    pads=[0, 0, 0, 0] if mixes else [1, 1, 1, 1],
                    group=len(weight) if name in BY_CHANNEL else 1,
                )
            image = graph.node("Relu", image)
        by_time = graph.node("Squeeze", graph.node("Transpose", image, perm=[0, 2, 1, 3]), graph.integers(0))
        states = self.linear(graph.node("Reshape", by_time, graph.integers(0, -1)), "pre_encode.out")
        if self.config.scale == 1:
            return states
        return graph.node("Mul", states, graph.weight("scale", np.array(self.config.scale, np.float32)))

    def layer(self, states: str, name: str) -> str:
        graph = self.graph
        half = graph.weight("half", np.array(0.5, np.float32))
        for part, function, scaled in (
            ("feed_forward1", self.feed_forward, True),
            ("self_att", self.attend, False),
            ("conv", self.convolve, False),
            ("feed_forward2", self.feed_forward, True),
        ):
            place = "self_attn" if part == "self_att" else part
            added = function(self.norm(states, f"{name}.norm_{part}"), f"{name}.{place}")
            states = graph.node("Add", states, graph.node("Mul", half, added) if scaled else added)
        return self.norm(states, f"{name}.norm_out")

    def feed_forward(self, states: str, name: str) -> str:
        return self.linear(self.silu(self.linear(states, f"{name}.linear1")), f"{name}.linear2")

    def convolve(self, states: str, name: str) -> str:
        weight = self.weights[f"{name}.depthwise_conv.weight"]
        doubled = self.linear(states, f"{name}.pointwise_conv1")
        mixed = self.mix_frames(doubled, name, weight, self.bias(f"{name}.depthwise_conv", len(weight)))
        return self.linear(mixed, f"{name}.pointwise_conv2")

    def attend(self, states: str, name: str) -> str:
        """Write the attention; the scaling of scores is in the queries' weights."""
        graph, scale = self.graph, self.head_size**-0.5
        parts = [self.weights[f"{name}.linear_{part}.weight"] for part in "qkv"]
        packed = np.concatenate([parts[0] * np.float32(scale), *parts[1:]])
        product = self.write_linear(graph, states, f"{name}.linear_qkv.weight", packed)
        query, key, value = graph.nodes("Split", product, outputs=3, axis=-1, num_outputs=3)
        by_content, by_distance = (self.biased(query, name, "q", f"pos_bias_{each}", scale) for each in "uv")
        keys = graph.node("Transpose", self.biased(key, name, "k"), perm=[0, 2, 1])
        scores = graph.node("Add", graph.node("MatMul", by_content, keys), self.score_distances(by_distance, name))
        attended = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), self.biased(value, name, "v"))
        rows = graph.node("Reshape", graph.node("Transpose", attended, perm=[1, 0, 2]), graph.integers(0, -1))
        return self.linear(rows, f"{name}.linear_out")

    def biased(self, rows: str, name: str, part: str, added: str = "", scale: float = 1.0) -> str:
        """Add a bias to rows [states, width], and a vector of each head; return them as [heads, states, head size]."""
        graph = self.graph
        bias = self.bias(f"{name}.linear_{part}", self.width)
        if added:
            bias = (bias + self.weights[f"{name}.{added}"].reshape(-1)) * np.float32(scale)
        whole = graph.node("Add", rows, graph.weight(f"{name}.bias_{part}{added}", bias.astype(np.float32)))
        shape = graph.integers(0, self.config.heads, self.head_size)
        return graph.node("Transpose", graph.node("Reshape", whole, shape), perm=[1, 0, 2])

    def score_distances(self, query: str, name: str) -> str:
        """Return the scores [heads, states, states] of how far apart query and key are."""
        graph, longest = self.graph, self.config.longest
        keys = self.positions @ self.weights[f"{name}.linear_pos.weight"].T
        table = np.ascontiguousarray(keys.reshape(-1, self.config.heads, self.head_size).transpose(1, 2, 0))
        first = graph.node("Sub", graph.integers(longest), self.count)
        last = graph.node("Add", graph.integers(longest - 1), self.count)
        near = graph.node("Slice", graph.weight(f"{name}.distances", table), first, last, graph.integers(2))
        columns = graph.node("Unsqueeze", graph.node("MatMul", query, near), graph.integers(0))
        return graph.node("Squeeze", scores_of_distances(graph, columns, self.count), graph.integers(0))

    def bias(self, name: str, size: int) -> Float32:
        return self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else np.zeros(size, np.float32)

    def linear(self, x: str, name: str) -> str:
        return super().linear(x, name) if f"{name}.bias" in self.weights else self.product(x, name)


def build_encoder(
    config: FastConformerConfig, mel_bins: int, weights: Mapping[str, Float32], linear: Linear = float32_linear
) -> GraphBuilder:
    """Return the graph described above."""
    return FastConformerWriter(config, weights, linear).build(mel_bins)
