"""Write the adapter with a CTC head as an ONNX graph straight from `adapter.safetensors`.

    states            [states, encoder_width] float32  in   of one utterance; a multiple of the reduction
    blank_probability [frames] float32                 out  of every adapter frame
    kept              [kept] int64                     out  the frames with P(blank) < `blank_threshold`
    top_tokens        [kept, K] int64                  out  the K best tokens of each kept frame
    top_probabilities [kept, K] float32                out  and their probabilities given that the frame is not blank
    residual          [kept, embedding_size] float32   out  what is added to the tokens' expected embedding

The vocabulary is scored only where a frame is kept: blanks, most of all frames, never meet the embedding table.
"""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from models.bundle.sections import FileName, GraphValues, ProjectorSection, Shapes, dimension
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder
from models.projectors.subsample import SubsampleWriter, TrainedAdapter

TOP_TOKENS = 8


class SubsampleCtcSection(ProjectorSection):
    """The adapter in `bundle.json`."""

    drafts: ClassVar[bool] = True
    weights: FileName

    def graph_values(self, shapes: Shapes) -> GraphValues:
        return {"encoder_width": dimension(shapes, "states", 1), "embedding_size": dimension(shapes, "residual", 1)}


class AdapterWriter(SubsampleWriter):
    """Adds the adapter's parts to a graph; `linear` writes the layers' products, `head` the one with the embedding table."""

    def __init__(
        self,
        adapter: TrainedAdapter,
        embedding: Float32,
        linear: Linear,
        head: Linear,
        float_type: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(adapter, linear, float_type)
        self.embedding, self.write_head = embedding, head

    def build(self) -> GraphBuilder:
        graph, config = self.graph, self.config
        hidden, blank = self.frames()
        threshold = graph.weight("blank_threshold", np.array(config["blank_threshold"], np.float32))
        speech = graph.node("Less", blank, threshold)
        kept = graph.node("Compress", hidden, speech, axis=0)
        top_probabilities, top_tokens = self.score(kept)

        graph.output(blank, "blank_probability", np.float32, ["frames"])
        graph.output(graph.node("Squeeze", graph.node("NonZero", speech), self.axes(0)), "kept", np.int64, ["kept"])
        graph.output(top_tokens, "top_tokens", np.int64, ["kept", TOP_TOKENS])
        graph.output(top_probabilities, "top_probabilities", np.float32, ["kept", TOP_TOKENS])
        graph.output(self.linear(kept, "residual"), "residual", np.float32, ["kept", config["embedding_size"]])
        return graph

    def frames(self) -> tuple[str, str]:
        """Return every frame's hidden state [frames, width] and P(blank) [frames]."""
        hidden = self.hidden()
        return hidden, self.graph.node("Sigmoid", self.graph.node("Squeeze", self.linear(hidden, "blank"), self.axes(1)))

    def score(self, hidden: str) -> tuple[str, str]:
        """Return the best tokens of each hidden state: their probabilities and ids [n, TOP_TOKENS]."""
        graph = self.graph
        query = graph.node("Mul", self.linear(hidden, "output"), graph.weight("logit_scale", self.weights["logit_scale"]))
        probabilities = graph.node("Softmax", self.write_head(graph, query, "embedding", self.embedding), axis=-1)
        count = graph.weight("top_count", np.array([TOP_TOKENS], np.int64))
        top_probabilities, top_tokens = graph.nodes("TopK", probabilities, count, outputs=2, axis=-1)
        return top_probabilities, top_tokens

    def subsample(self, states: str) -> str:
        """Turn [states, encoder_width] into [1, frames, input_width], by dropping states or by stacking them."""
        reduction, width = self.config["reduction"], self.config["encoder_width"]
        if self.config["subsampling"] == "stack":
            shape = np.array([1, -1, reduction * width], np.int64)
            return self.graph.node("Reshape", states, self.graph.weight("stack.shape", shape))
        shape = np.array([1, -1, reduction, width], np.int64)
        grouped = self.graph.node("Reshape", states, self.graph.weight("subsample.shape", shape))
        return self.graph.node("Gather", grouped, self.graph.weight("subsample.phase", np.array(0, np.int64)), axis=2)


def build_adapter(
    adapter: TrainedAdapter, embedding: Float32, linear: Linear = float32_linear, head: Linear = float32_linear
) -> GraphBuilder:
    """Return the graph described above. `embedding` is the LLM's table [vocabulary, embedding_size]."""
    return AdapterWriter(adapter, embedding, linear, head).build()
