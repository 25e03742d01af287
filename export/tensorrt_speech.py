"""The encoder's and the adapter's graphs in the form that is fastest on TensorRT.

Query, key and value leave their product by heads, all at once, which is one kernel in place of three. And the adapter keeps
every frame: shapes that depend on data cost a GPU more than scoring blanks does.
"""

import numpy as np
import numpy.typing as npt

from models.encoders.whisper import Arrays, WhisperEncoderWriter
from models.graph.linear import Float32, float32_linear
from models.graph.silent_rest import SilentRest
from models.graph.writer import GraphBuilder
from models.projectors.subsample import TrainedAdapter
from models.projectors.subsample_ctc import TOP_TOKENS, AdapterWriter


class ByHeadEncoderWriter(WhisperEncoderWriter):
    """The same encoder."""

    def attend(self, x: str, name: str) -> str:
        parts = _split_heads(self.graph, self.linear(x, f"{name}/linear_0"), 3 * self.heads, self.width // self.heads)
        query_key_value = self.graph.nodes("Split", parts, outputs=3, axis=1, num_outputs=3)
        attended = self.graph.node("Attention", *query_key_value, *self.attention_bias)
        return self.linear(_join_heads(self.graph, attended, self.width), f"{name}/linear_1")


class DenseAdapterWriter(AdapterWriter):
    """The same adapter without the output `kept`: the other outputs have a row for each frame."""

    def build(self) -> GraphBuilder:
        graph = self.graph
        hidden, blank = self.frames()
        top_probabilities, top_tokens = self.score(hidden)
        graph.output(blank, "blank_probability", np.float32, ["frames"])
        graph.output(top_tokens, "top_tokens", np.int64, ["frames", TOP_TOKENS])
        graph.output(top_probabilities, "top_probabilities", np.float32, ["frames", TOP_TOKENS])
        graph.output(self.linear(hidden, "residual"), "residual", np.float32, ["frames", self.config["embedding_size"]])
        return graph

    def attend(self, x: str, name: str, positions: str) -> str:
        graph, heads, width = self.graph, self.config["heads"], self.config["width"]
        parts = _split_heads(graph, self.linear(x, f"{name}.qkv"), 3 * heads, width // heads)
        turning, value = graph.nodes(
            "Split", parts, graph.weight("heads.turning_value", np.array([2 * heads, heads], np.int64)), outputs=2, axis=1
        )
        turned = graph.node("RotaryEmbedding", turning, *self.rotary_tables(), positions)
        query, key = graph.nodes("Split", turned, outputs=2, axis=1, num_outputs=2)
        attended = graph.node("Attention", query, key, value)
        return self.linear(_join_heads(graph, attended, width), f"{name}.attention_out")


def build_by_head_encoder(
    arrays: Arrays, float_type: npt.DTypeLike, *, dropped: int = 0, rest: SilentRest | None = None
) -> GraphBuilder:
    """Return the encoder for TensorRT, computing in `float_type`; all else is as for `models.encoders.whisper.build_encoder`."""
    return ByHeadEncoderWriter(arrays, float32_linear, float_type, dropped=dropped, rest=rest).build()


def build_dense_adapter(adapter: TrainedAdapter, embedding: Float32, float_type: npt.DTypeLike) -> GraphBuilder:
    """Return the adapter for TensorRT, computing in `float_type`. `embedding` is the LLM's table [vocabulary, embedding_size].

    The input `states` is that of `models.projectors.subsample_ctc`; the outputs, for every frame, are `blank_probability`,
    `top_tokens`, `top_probabilities` and `residual`. The runtime drops the frames whose P(blank) reaches the threshold.
    """
    return DenseAdapterWriter(adapter, embedding, float32_linear, float32_linear, float_type).build()


def _split_heads(graph: GraphBuilder, packed: str, heads: int, head_size: int) -> str:
    """Turn [1, S, heads * h] into [1, heads, S, h]."""
    shape = graph.weight("heads.split", np.array([0, 0, heads, head_size], np.int64))
    return graph.node("Transpose", graph.node("Reshape", packed, shape), perm=[0, 2, 1, 3])


def _join_heads(graph: GraphBuilder, attended: str, width: int) -> str:
    """Turn [1, heads, S, h] into [1, S, width]."""
    shape = graph.weight("heads.joined", np.array([0, 0, width], np.int64))
    return graph.node("Reshape", graph.node("Transpose", attended, perm=[0, 2, 1, 3]), shape)
