"""Write w2v-BERT 2.0 as an ONNX graph: a conformer with causal convolutions whose attention sees the whole utterance.

    features [2 * mel bins, frames]  float32  in   of one utterance
    states   [frames, width]         float32  out  50 a second

Scores have Shaw's relative positions (arXiv 1803.02155), and those further apart than the checkpoint's limits are not told apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.bundle.sections import MelEncoderSection
from models.graph.conformer import ConformerWriter
from models.graph.distances import scores_of_distances
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder


class W2vBertSection(MelEncoderSection):
    """w2v-BERT 2.0 in `bundle.json`."""

    features = "kaldi_fbank"
    STACKED = 2


@dataclass(frozen=True)
class W2vBertConfig:
    """The shape of an encoder. `longest` is how many states an utterance may have; keys are told apart from `left` before a query
    to `right` behind it.
    """

    layers: int
    heads: int
    left: int
    right: int
    longest: int


class W2vBertWriter(ConformerWriter):
    """Adds the encoder's parts to a graph. `weights` have transformers' names without `wav2vec2_bert.`."""

    def __init__(self, config: W2vBertConfig, weights: Mapping[str, Float32], linear: Linear) -> None:
        super().__init__(GraphBuilder("w2v_bert"), weights, linear)
        self.config = config

    def build(self) -> GraphBuilder:
        graph = self.graph
        width, bins = self.weights["feature_projection.projection.weight"].shape
        features = graph.input("features", np.float32, [bins, "frames"])
        rows = self.norm(graph.node("Transpose", features, perm=[1, 0]), "feature_projection.layer_norm")
        states = self.linear(rows, "feature_projection.projection")
        self.count = graph.node("Shape", states, start=0, end=1)
        for layer in range(self.config.layers):
            states = self.layer(states, f"encoder.layers.{layer}")
        graph.output(states, "states", np.float32, ["states", width])
        return graph

    def layer(self, states: str, name: str) -> str:
        graph = self.graph
        states = self.feed_forward(states, f"{name}.ffn1")
        states = graph.node("Add", states, self.attend(self.norm(states, f"{name}.self_attn_layer_norm"), f"{name}.self_attn"))
        states = graph.node("Add", states, self.convolve(states, f"{name}.conv_module"))
        return self.norm(self.feed_forward(states, f"{name}.ffn2"), f"{name}.final_layer_norm")

    def feed_forward(self, states: str, name: str) -> str:
        """Return the states with half of what the layer makes of them."""
        inner = self.silu(self.linear(self.norm(states, f"{name}_layer_norm"), f"{name}.intermediate_dense"))
        half = self.graph.weight("half", np.array(0.5, np.float32))
        return self.graph.node("Add", states, self.graph.node("Mul", half, self.linear(inner, f"{name}.output_dense")))

    def convolve(self, states: str, name: str) -> str:
        weight = self.weights[f"{name}.depthwise_conv.weight"]
        doubled = self.linear(self.norm(states, f"{name}.layer_norm"), f"{name}.pointwise_conv1")
        mixed = self.gate_frames(doubled, name, weight, np.zeros(len(weight), np.float32), before=weight.shape[2] - 1)
        return self.linear(self.silu(self.norm(mixed, f"{name}.depthwise_layer_norm")), f"{name}.pointwise_conv2")

    def attend(self, states: str, name: str) -> str:
        """Write the attention; the scaling of scores is in the queries' weights."""
        graph, heads = self.graph, self.config.heads
        size = self.weights[f"{name}.distance_embedding.weight"].shape[1]
        scales = np.array([size**-0.5, 1, 1], np.float32)
        parts = [f"{name}.linear_{part}" for part in "qkv"]
        weights = [self.weights[f"{part}.weight"] * scale for part, scale in zip(parts, scales, strict=True)]
        biases = [self.weights[f"{part}.bias"] * scale for part, scale in zip(parts, scales, strict=True)]
        product = self.write_linear(graph, states, f"{name}.linear_qkv.weight", np.concatenate(weights))
        packed = graph.node("Add", product, graph.weight(f"{name}.linear_qkv.bias", np.concatenate(biases)))
        by_head = graph.node("Transpose", graph.node("Reshape", packed, graph.integers(0, 3 * heads, size)), perm=[1, 0, 2])
        query, key, value = graph.nodes("Split", by_head, outputs=3, axis=0, num_outputs=3)
        scores = graph.node("MatMul", query, graph.node("Transpose", key, perm=[0, 2, 1]))
        scores = graph.node("Add", scores, self.score_distances(query, name))
        attended = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
        rows = graph.node("Reshape", graph.node("Transpose", attended, perm=[1, 0, 2]), graph.integers(0, -1))
        return self.linear(rows, f"{name}.linear_out")

    def score_distances(self, query: str, name: str) -> str:
        """Return the scores [heads, states, states] of how far apart query and key are."""
        graph, config = self.graph, self.config
        distances = np.clip(np.arange(1 - config.longest, config.longest), -config.left, config.right)
        embeddings = self.weights[f"{name}.distance_embedding.weight"][distances + config.left]
        table = graph.weight(f"{name}.distances", np.ascontiguousarray(embeddings.T))
        first = graph.node("Sub", graph.integers(config.longest), self.count)
        last = graph.node("Add", graph.integers(config.longest - 1), self.count)
        near = graph.node("Slice", table, first, last, graph.integers(1))
        columns = graph.node("Unsqueeze", graph.node("MatMul", query, near), graph.integers(0))
        return graph.node("Squeeze", scores_of_distances(graph, columns, self.count), graph.integers(0))

    def linear(self, x: str, name: str) -> str:
        return super().linear(x, name) if f"{name}.bias" in self.weights else self.product(x, name)


def build_encoder(config: W2vBertConfig, weights: Mapping[str, Float32], linear: Linear = float32_linear) -> GraphBuilder:
    """Return the graph described above."""
    return W2vBertWriter(config, weights, linear).build()
