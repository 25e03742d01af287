"""Write the adapter as an ONNX graph straight from `adapter.safetensors`.

    states            [states, encoder_width] float32  in   of one utterance; a multiple of the reduction
    blank_probability [frames] float32                 out  of every adapter frame
    kept              [kept] int64                     out  the frames with P(blank) < `blank_threshold`
    top_tokens        [kept, K] int64                  out  the K best tokens of each kept frame
    top_probabilities [kept, K] float32                out  and their probabilities given that the frame is not blank
    residual          [kept, embedding_size] float32   out  what is added to the tokens' expected embedding

The vocabulary is scored only where a frame is kept: blanks, most of all frames, never meet the embedding table.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from models.bundle.schema import FileName, GraphValues, ProjectorSection, Shapes, dimension
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder
from models.protocols import BackendError

TOP_TOKENS = 8
LAYER_NORM_EPSILON = 1e-5
MAX_FRAMES = 1024


class SubsampleCtcSection(ProjectorSection):
    """The adapter in `bundle.json`."""

    drafts: ClassVar[bool] = True
    weights: FileName

    def graph_values(self, shapes: Shapes) -> GraphValues:
        return {"encoder_width": dimension(shapes, "states", 1), "embedding_size": dimension(shapes, "residual", 1)}


@dataclass(frozen=True)
class TrainedAdapter:
    """Weights by name, and the configuration they were trained with."""

    weights: dict[str, Float32]
    config: dict[str, Any]

    @property
    def values(self) -> GraphValues:
        """The trained values that `SubsampleCtcSection` declares, by its names."""
        names = {"encoder_width": "encoder_width", "subsampling": "reduction", "embedding_size": "embedding_size"}
        return {name: self.config.get(trained) for name, trained in names.items()}

    @property
    def boundary_before(self) -> Float32:
        return self.weights["boundary_before"]

    @property
    def boundary_after(self) -> Float32:
        return self.weights["boundary_after"]


def read_adapter(path: Path) -> TrainedAdapter:
    """Read `adapter.safetensors`; float16 weights become float32. Raises `BackendError` for any other file."""
    try:
        with safe_open(path, framework="numpy") as file:
            config = json.loads(file.metadata()["config"])
            return TrainedAdapter({name: file.get_tensor(name).astype(np.float32) for name in file.keys()}, config)  # noqa: SIM118
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise BackendError(f"{path.name} could not be loaded: {error}") from error


class AdapterWriter:
    """Adds the adapter's parts to a graph; `linear` writes the layers' products, `head` the one with the embedding table."""

    def __init__(
        self,
        adapter: TrainedAdapter,
        embedding: Float32,
        linear: Linear,
        head: Linear,
        float_type: npt.DTypeLike = np.float32,
    ) -> None:
        self.weights, self.config = adapter.weights, adapter.config
        self.embedding = embedding
        self.write_linear, self.write_head = linear, head
        self.graph = GraphBuilder("adapter", float_type)

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
        graph, config = self.graph, self.config
        states = graph.input("states", np.float32, ["states", config["encoder_width"]])
        x = self.linear(self.subsample(states), "input")
        positions = self.positions(x)
        for layer in range(config["layers"]):
            name = f"layers.{layer}"
            x = graph.node("Add", x, self.attend(self.norm(x, f"{name}.attention_norm"), name, positions))
            inner = graph.node("Gelu", self.linear(self.norm(x, f"{name}.feed_forward_norm"), f"{name}.feed_forward_in"))
            x = graph.node("Add", x, self.linear(inner, f"{name}.feed_forward_out"))
        hidden = graph.node("Squeeze", self.norm(x, "norm"), self.axes(0))
        return hidden, graph.node("Sigmoid", graph.node("Squeeze", self.linear(hidden, "blank"), self.axes(1)))

    def score(self, hidden: str) -> tuple[str, str]:
        """Return the best tokens of each hidden state: their probabilities and ids [n, TOP_TOKENS]."""
        graph = self.graph
        query = graph.node("Mul", self.linear(hidden, "output"), graph.weight("logit_scale", self.weights["logit_scale"]))
        probabilities = graph.node("Softmax", self.write_head(graph, query, "embedding", self.embedding), axis=-1)
        count = graph.weight("top_count", np.array([TOP_TOKENS], np.int64))
        top_probabilities, top_tokens = graph.nodes("TopK", probabilities, count, outputs=2, axis=-1)
        return top_probabilities, top_tokens

    def axes(self, axis: int) -> str:
        return self.graph.weight(f"axes.{axis}", np.array([axis], np.int64))

    def subsample(self, states: str) -> str:
        """Turn [states, encoder_width] into [1, frames, input_width], by dropping states or by stacking them."""
        reduction, width = self.config["reduction"], self.config["encoder_width"]
        if self.config["subsampling"] == "stack":
            shape = np.array([1, -1, reduction * width], np.int64)
            return self.graph.node("Reshape", states, self.graph.weight("stack.shape", shape))
        shape = np.array([1, -1, reduction, width], np.int64)
        grouped = self.graph.node("Reshape", states, self.graph.weight("subsample.shape", shape))
        return self.graph.node("Gather", grouped, self.graph.weight("subsample.phase", np.array(0, np.int64)), axis=2)

    def positions(self, x: str) -> str:
        """Return the frame numbers [1, frames]."""
        graph = self.graph
        frames = graph.node("Squeeze", graph.node("Shape", x, start=1, end=2), self.axes(0))
        zero, one = graph.weight("zero", np.array(0, np.int64)), graph.weight("one", np.array(1, np.int64))
        return graph.node("Unsqueeze", graph.node("Range", zero, frames, one), self.axes(0))

    def rotary_tables(self) -> tuple[str, str]:
        head_size = self.config["width"] // self.config["heads"]
        frequencies = self.config["rope_theta"] ** (-np.arange(0, head_size, 2) / head_size)
        angles = np.arange(MAX_FRAMES)[:, None] * frequencies
        cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        return self.graph.weight("rotary.cos", cosines), self.graph.weight("rotary.sin", sines)

    def norm(self, x: str, name: str) -> str:
        scale, bias = (self.graph.weight(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.graph.node("LayerNormalization", x, scale, bias, epsilon=LAYER_NORM_EPSILON)

    def linear(self, x: str, name: str) -> str:
        product = self.write_linear(self.graph, x, f"{name}.weight", self.weights[f"{name}.weight"])
        return self.graph.node("Add", product, self.graph.weight(f"{name}.bias", self.weights[f"{name}.bias"]))

    def attend(self, x: str, name: str, positions: str) -> str:
        heads = self.config["heads"]
        query, key, value = self.graph.nodes("Split", self.linear(x, f"{name}.qkv"), outputs=3, axis=-1, num_outputs=3)
        tables = self.rotary_tables()
        query, key = (self.graph.node("RotaryEmbedding", part, *tables, positions, num_heads=heads) for part in (query, key))
        attended = self.graph.node("Attention", query, key, value, q_num_heads=heads, kv_num_heads=heads)
        return self.linear(attended, f"{name}.attention_out")


def build_adapter(
    adapter: TrainedAdapter, embedding: Float32, linear: Linear = float32_linear, head: Linear = float32_linear
) -> GraphBuilder:
    """Return the graph described above. `embedding` is the LLM's table [vocabulary, embedding_size]."""
    return AdapterWriter(adapter, embedding, linear, head).build()
