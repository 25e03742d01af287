"""Write Granite-speech's projector as an ONNX graph: learned queries that attend to windows of states (BLIP-2's Q-Former).

    states            [n, encoder_width] float32               in
    frames            [windows * queries, embedding_size]      out  the last window is filled with zeros
    blank_probability [ceil(n / draft_subsampling)] float32    out  of the LLM's CTC head, where there is one
    top_tokens        [.., K] int64                            out  the K best tokens of each of its frames
    top_probabilities [.., K] float32                          out  and their probabilities

The head (`QformerCtcSection`) reads averages of states, weighted by the probability of a letter, which is the last number of each
state. Its label 0 is the blank, label i the LLM's token i - 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import PositiveInt

from models.bundle.sections import FrameProjectorSection
from models.graph.blocks import pad_to_blocks
from models.graph.layers import LayerWriter
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder

TOP_TOKENS = 8
LEAST_WEIGHT = 1e-8


class QformerSection(FrameProjectorSection):
    """The projector in `bundle.json`."""


class QformerCtcSection(QformerSection):
    """The projector with the LLM's CTC head, whose frames are `draft_subsampling` states long."""

    drafts: ClassVar[bool] = True
    draft_subsampling: PositiveInt

    @property
    def frame_states(self) -> int:
        return self.draft_subsampling


@dataclass(frozen=True)
class QformerConfig:
    """The shape of a projector."""

    layers: int
    heads: int
    window: int
    norm_epsilon: float


@dataclass(frozen=True)
class CtcHead:
    """A head over the LLM's tokens: weight [tokens + 1, width], bias, and how many states a frame has."""

    weight: Float32
    bias: Float32
    subsampling: int


class QformerWriter(LayerWriter):
    """Adds the projector's parts to a graph. `weights` have the checkpoint's names without `projector.`."""

    def __init__(self, config: QformerConfig, weights: Mapping[str, Float32], linear: Linear, head: CtcHead | None) -> None:
        super().__init__(GraphBuilder("qformer"), weights, linear)
        self.norm_epsilon, self.config, self.head = config.norm_epsilon, config, head
        self.read_width = weights["qformer.encoder.layer.0.crossattention.attention.key.weight"].shape[1]

    def build(self, write_head: Linear) -> GraphBuilder:
        graph, read = self.graph, self.read_width
        states = graph.input("states", np.float32, ["states", read + (self.head is not None)])
        if self.head is not None:
            heard = graph.node("Slice", states, graph.integers(0), graph.integers(read), graph.integers(1))
            speaks = graph.node("Slice", states, graph.integers(read), graph.integers(read + 1), graph.integers(1))
            self.write_draft(heard, speaks, self.head, write_head)
            states = heard
        frames = self.linear(self.ask(states, read), "linear")
        embedding_size = len(self.weights["linear.bias"])
        frames = graph.node("Reshape", frames, graph.integers(-1, embedding_size))
        graph.output(frames, "frames", np.float32, ["frames", embedding_size])
        return graph

    def ask(self, states: str, width: int) -> str:
        """Return what the queries find in each window of states [windows, queries, width]."""
        graph, query = self.graph, self.weights["query"]
        windows = graph.node("Reshape", self.fill(states, self.config.window), graph.integers(-1, self.config.window, width))
        count = graph.node("Shape", windows, start=0, end=1)
        shape = graph.node("Concat", count, graph.integers(*query.shape[1:]), axis=0)
        found = self.norm(graph.node("Expand", graph.weight("query", query), shape), "qformer.layernorm")
        for layer in range(self.config.layers):
            name = f"qformer.encoder.layer.{layer}"
            found = self.attend(found, found, f"{name}.attention")
            if f"{name}.crossattention.attention.query.weight" in self.weights:
                found = self.attend(found, windows, f"{name}.crossattention")
            inner = graph.node("Gelu", self.linear(found, f"{name}.intermediate_query.dense"))
            added = graph.node("Add", self.linear(inner, f"{name}.output_query.dense"), found)
            found = self.norm(added, f"{name}.output_query.LayerNorm")
        return found

    def attend(self, asking: str, asked: str, name: str) -> str:
        graph, heads = self.graph, self.config.heads
        query = self.linear(asking, f"{name}.attention.query")
        key, value = (self.linear(asked, f"{name}.attention.{part}") for part in ("key", "value"))
        attended = graph.node("Attention", query, key, value, q_num_heads=heads, kv_num_heads=heads)
        return self.norm(graph.node("Add", self.linear(attended, f"{name}.output.dense"), asking), f"{name}.output.LayerNorm")

    def write_draft(self, states: str, speaks: str, head: CtcHead, write_head: Linear) -> None:
        """Declare the outputs of the head."""
        graph, count = self.graph, head.subsampling
        weights = graph.node("Reshape", self.fill(speaks, count), graph.integers(-1, count, 1))
        total = graph.node("ReduceSum", weights, graph.integers(1), keepdims=1)
        shares = graph.node("Div", weights, graph.node("Add", total, graph.weight("least", np.array(LEAST_WEIGHT, np.float32))))
        width, read = head.weight.shape[1], self.read_width
        last = graph.node("Slice", states, graph.integers(read - width), graph.integers(read), graph.integers(1))
        grouped = graph.node("Reshape", self.fill(last, count), graph.integers(-1, count, width))
        pooled = graph.node("ReduceSum", graph.node("Mul", grouped, shares), graph.integers(1), keepdims=0)
        scores = graph.node(
            "Add", write_head(graph, pooled, "out_llm.weight", head.weight), graph.weight("out_llm.bias", head.bias)
        )
        labels = graph.node("Softmax", scores, axis=-1)
        sizes = graph.weight("labels.apart", np.array([1, len(head.weight) - 1], np.int64))
        blank, tokens = graph.nodes("Split", labels, sizes, outputs=2, axis=-1)
        probabilities, best = graph.nodes(
            "TopK", tokens, graph.integers(min(TOP_TOKENS, len(head.weight) - 1)), outputs=2, axis=-1
        )
        graph.output(graph.node("Squeeze", blank, graph.integers(1)), "blank_probability", np.float32, ["draft_frames"])
        graph.output(best, "top_tokens", np.int64, ["draft_frames", "top"])
        graph.output(probabilities, "top_probabilities", np.float32, ["draft_frames", "top"])

    def fill(self, rows: str, count: int) -> str:
        """Return rows [n, width] with zeros behind them, as many as make a multiple of `count`."""
        length = self.graph.node("Shape", rows, start=0, end=1)
        return pad_to_blocks(self.graph, rows, length, self.graph.integers(count), axis=0)


def build_projector(
    config: QformerConfig,
    weights: Mapping[str, Float32],
    linear: Linear = float32_linear,
    head: CtcHead | None = None,
    write_head: Linear = float32_linear,
) -> GraphBuilder:
    """Return the graph described above; `write_head` writes the product of the CTC head."""
    return QformerWriter(config, weights, linear, head).build(write_head)
