"""Write Granite-speech's encoder as an ONNX graph: a conformer whose attention stays within blocks of 4 s.

    features [2 * mel bins, frames]  float32  in   of one utterance
    states   [frames, width]         float32  out  50 a second

Scores have Shaw's relative positions (arXiv 1803.02155). In the middle the states learn what the CTC head of letters reads in
them. States that an LLM's CTC head follows have one number more at the end: the probability that a letter is read there. Some
releases (`concatenated`) put states of earlier layers before the last ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.bundle.sections import MelEncoderSection
from models.graph.blocks import mask_padding, pad_to_blocks
from models.graph.conformer import ConformerWriter
from models.graph.distances import scores_of_distances
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder


class GraniteSection(MelEncoderSection):
    """Granite-speech's encoder in `bundle.json`. `width` counts all that a state holds."""

    features = "granite_mel"
    STACKED = 2


@dataclass(frozen=True)
class GraniteConfig:
    """The shape of an encoder. Positions further apart than `largest_distance` are not told apart."""

    layers: int
    heads: int
    head_size: int
    block: int
    largest_distance: int
    concatenated: tuple[int, ...] = ()
    tells_letters: bool = False


class GraniteEncoderWriter(ConformerWriter):
    """Adds the encoder's parts to a graph. `weights` have the checkpoint's names without `encoder.`."""

    def __init__(self, config: GraniteConfig, weights: Mapping[str, Float32], linear: Linear) -> None:
        super().__init__(GraphBuilder("granite_encoder"), weights, linear)
        self.config = config

    def build(self) -> GraphBuilder:
        graph, config = self.graph, self.config
        width, bins = self.weights["input_linear.weight"].shape
        features = graph.input("features", np.float32, [bins, "frames"])
        self.count = graph.node("Shape", features, start=1, end=2)
        self.span = graph.node("Min", self.count, graph.integers(config.block))
        self.mask, _ = mask_padding(graph, self.count, self.span)
        rows = graph.node("Transpose", features, perm=[1, 0])
        states = graph.node(
            "Add",
            float32_linear(graph, rows, "input_linear.weight", self.weights["input_linear.weight"]),
            self.weight("input_linear.bias"),
        )
        kept, letters = [states] if 0 in config.concatenated else [], None
        for layer in range(config.layers):
            states = self.layer(states, f"layers.{layer}")
            if layer + 1 == config.layers // 2:
                letters = graph.node("Softmax", self.linear(states, "out"), axis=-1)
                states = graph.node("Add", states, self.linear(letters, "out_mid"))
            if layer + 1 in config.concatenated:
                kept.append(states)
        parts = [*kept, states]
        if config.tells_letters and letters is not None:
            blank = graph.node("Slice", letters, graph.integers(0), graph.integers(1), graph.integers(1))
            parts.append(graph.node("Sub", graph.weight("one", np.array(1, np.float32)), blank))
        whole = graph.node("Concat", *parts, axis=-1) if len(parts) > 1 else graph.node("Identity", states)
        size = width * (1 + len(kept)) + (len(parts) - 1 - len(kept))
        graph.output(whole, "states", np.float32, ["states", size])
        return graph

    def layer(self, states: str, name: str) -> str:
        graph = self.graph
        half = graph.weight("half", np.array(0.5, np.float32))
        states = graph.node("Add", graph.node("Mul", half, self.feed_forward(states, f"{name}.ff1")), states)
        states = graph.node("Add", self.attend(self.norm(states, f"{name}.attn.pre_norm"), f"{name}.attn"), states)
        states = graph.node("Add", self.convolve(self.norm(states, f"{name}.conv.norm"), f"{name}.conv"), states)
        states = graph.node("Add", graph.node("Mul", half, self.feed_forward(states, f"{name}.ff2")), states)
        return self.norm(states, f"{name}.post_norm")

    def feed_forward(self, states: str, name: str) -> str:
        inner = self.silu(self.linear(self.norm(states, f"{name}.pre_norm"), f"{name}.up_proj"))
        return self.linear(inner, f"{name}.down_proj")

    def convolve(self, states: str, name: str) -> str:
        weight = self.weights[f"{name}.depth_conv.conv.weight"]
        doubled = self.linear(states, f"{name}.up_conv")
        mixed = self.mix_frames(doubled, name, weight, np.zeros(len(weight), np.float32))
        return self.linear(mixed, f"{name}.down_conv")

    def attend(self, states: str, name: str) -> str:
        graph, config = self.graph, self.config
        weights = [self.weights[f"{name}.to_q.weight"] * np.float32(config.head_size**-0.5), self.weights[f"{name}.to_kv.weight"]]
        packed = self.write_linear(graph, states, f"{name}.qkv.weight", np.concatenate(weights))
        query, key, value = (self.by_block(each) for each in graph.nodes("Split", packed, outputs=3, axis=-1, num_outputs=3))
        scores = graph.node("MatMul", query, graph.node("Transpose", key, perm=[0, 1, 3, 2]))
        scores = graph.node("Add", graph.node("Add", scores, self.score_distances(query, name)), self.mask)
        attended = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
        size = config.heads * config.head_size
        rows = graph.node("Reshape", graph.node("Transpose", attended, perm=[0, 2, 1, 3]), graph.integers(-1, size))
        own = graph.node("Slice", rows, graph.integers(0), self.count, graph.integers(0))
        return self.linear(own, f"{name}.to_out")

    def by_block(self, rows: str) -> str:
        """Turn rows [frames, heads * head size] into [blocks, heads, frames of a block, head size], zeros at the end."""
        graph = self.graph
        padded = pad_to_blocks(graph, rows, self.count, self.span, axis=0)
        sizes = graph.integers(self.config.heads, self.config.head_size)
        shape = graph.node("Concat", graph.integers(-1), self.span, sizes, axis=0)
        return graph.node("Transpose", graph.node("Reshape", padded, shape), perm=[0, 2, 1, 3])

    def score_distances(self, query: str, name: str) -> str:
        """Return the scores of how far apart query and key are, in the shape of the other scores."""
        graph, block, span = self.graph, self.config.block, self.span
        table = graph.weight(f"{name}.distances", self.distance_table(f"{name}.rel_pos_emb.weight"))
        first, last = graph.node("Sub", graph.integers(block), span), graph.node("Add", graph.integers(block - 1), span)
        near = graph.node("Slice", table, first, last, graph.integers(1))
        return scores_of_distances(graph, graph.node("MatMul", query, near), span)

    def distance_table(self, name: str) -> Float32:
        """Return the embeddings [head size, 2 * block - 1] of the distances block - 1 down to 1 - block."""
        config, embeddings = self.config, self.weights[name]
        distances = np.clip(np.arange(config.block - 1, -config.block, -1), -config.block, config.block)
        return np.ascontiguousarray(embeddings[distances + config.largest_distance].T)


def build_encoder(config: GraniteConfig, weights: Mapping[str, Float32], linear: Linear = float32_linear) -> GraphBuilder:
    """Return the graph described above."""
    return GraniteEncoderWriter(config, weights, linear).build()
