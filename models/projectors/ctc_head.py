"""Write the CTC head of a speech model as an ONNX graph: the transcript of a model that has no decoder.

    states            [n, encoder_width] float32  in
    blank_probability [n] float32                 out
    top_tokens        [n, K] int64                out  the K best tokens of each state, best first
    top_probabilities [n, K] float32              out  and their probabilities

The last label is the blank, label i is token i of the head's own tokeniser.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from models.bundle.sections import FileName, GraphValues, ProjectorSection, Shapes, dimension
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder

TOP_TOKENS = 20
"""As many as a request may ask for in the place of a token."""


class CtcHeadSection(ProjectorSection):
    """The head in `bundle.json`. Its best path is the answer: nothing is embedded for an LLM.

    `vocabulary_size` counts the blank. `languages` holds the code of the only language that is spoken, where that is known.
    """

    drafts: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    vocabulary: Literal["own"] = "own"
    embedding_size: Literal[0] = 0
    tokeniser: FileName
    vocabulary_size: PositiveInt
    languages: tuple[str, ...] = ()

    def graph_values(self, shapes: Shapes) -> GraphValues:
        return {"encoder_width": dimension(shapes, "states", 1)}

    def named_files(self) -> set[str]:
        return super().named_files() | {self.tokeniser}


def build_head(weight: Float32, bias: Float32, linear: Linear = float32_linear) -> GraphBuilder:
    """Return the graph described above, of weight [labels, encoder_width] and bias [labels]."""
    graph, (labels, width) = GraphBuilder("ctc_head"), weight.shape
    states = graph.input("states", np.float32, ["states", width])
    scores = graph.node("Add", linear(graph, states, "ctc_head.weight", weight), graph.weight("ctc_head.bias", bias))
    sizes = graph.weight("labels.apart", np.array([labels - 1, 1], np.int64))
    tokens, blank = graph.nodes("Split", graph.node("Softmax", scores, axis=-1), sizes, outputs=2, axis=-1)
    count = graph.weight("top_count", np.array([min(TOP_TOKENS, labels - 1)], np.int64))
    probabilities, best = graph.nodes("TopK", tokens, count, outputs=2, axis=-1)
    last = graph.weight("last", np.array([1], np.int64))
    graph.output(graph.node("Squeeze", blank, last), "blank_probability", np.float32, ["states"])
    graph.output(best, "top_tokens", np.int64, ["states", "top"])
    graph.output(probabilities, "top_probabilities", np.float32, ["states", "top"])
    return graph
