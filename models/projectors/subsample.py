"""Write an adapter of ours as an ONNX graph straight from `adapter.safetensors`, as the paper has it (arXiv 2310.00230).

    states [states, encoder_width] float32  in   of one utterance
    frames [frames, embedding_size] float32 out  of each 4th state, or another `reduction`

Transformer layers over the states that are kept, then a projection into the LLM's embedding space.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.bundle.sections import FrameProjectorSection, GraphValues
from models.graph.layers import LayerWriter
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder
from models.protocols import BackendError

LAYER_NORM_EPSILON = 1e-5
MAX_FRAMES = 1024


class SubsampleSection(FrameProjectorSection):
    """The paper's adapter in `bundle.json`."""


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

    def save(self, path: Path) -> None:
        """Write the file that `read_adapter` reads, in float16."""
        weights = {name: np.asarray(weight, np.float16, order="C") for name, weight in self.weights.items()}
        save_file(weights, path, metadata={"config": json.dumps(self.config)})

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


class SubsampleWriter(LayerWriter):
    """Adds the adapter's parts to a graph; `linear` writes the products."""

    def __init__(self, adapter: TrainedAdapter, linear: Linear, float_type: npt.DTypeLike = np.float32) -> None:
        super().__init__(GraphBuilder("adapter", float_type), adapter.weights, linear)
        self.config = adapter.config

    def build(self) -> GraphBuilder:
        frames = self.linear(self.hidden(), "output")
        self.graph.output(frames, "frames", np.float32, ["frames", self.config["embedding_size"]])
        return self.graph

    def hidden(self) -> str:
        """Return every frame's hidden state [frames, width]."""
        graph, config = self.graph, self.config
        states = graph.input("states", np.float32, ["states", config["encoder_width"]])
        x = self.linear(self.subsample(states), "input")
        positions = self.positions(x)
        for layer in range(config["layers"]):
            name = f"layers.{layer}"
            x = graph.node("Add", x, self.attend(self.norm(x, f"{name}.attention_norm"), name, positions))
            inner = graph.node("Gelu", self.linear(self.norm(x, f"{name}.feed_forward_norm"), f"{name}.feed_forward_in"))
            x = graph.node("Add", x, self.linear(inner, f"{name}.feed_forward_out"))
        return graph.node("Squeeze", self.norm(x, "norm"), self.axes(0))

    def axes(self, axis: int) -> str:
        return self.graph.integers(axis, name="axes")

    def subsample(self, states: str) -> str:
        """Turn [states, encoder_width] into [1, frames, encoder_width], the first of each `reduction` states."""
        graph = self.graph
        last, step = (
            graph.weight(f"subsample.{name}", np.array([value], np.int64))
            for name, value in (("last", np.iinfo(np.int64).max), ("step", self.config["reduction"]))
        )
        kept = graph.node("Slice", states, self.axes(0), last, self.axes(0), step)
        return graph.node("Unsqueeze", kept, self.axes(0))

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

    def attend(self, x: str, name: str, positions: str) -> str:
        heads = self.config["heads"]
        query, key, value = self.graph.nodes("Split", self.linear(x, f"{name}.qkv"), outputs=3, axis=-1, num_outputs=3)
        tables = self.rotary_tables()
        query, key = (self.graph.node("RotaryEmbedding", part, *tables, positions, num_heads=heads) for part in (query, key))
        attended = self.graph.node("Attention", query, key, value, q_num_heads=heads, kv_num_heads=heads)
        return self.linear(attended, f"{name}.attention_out")


def build_projector(adapter: TrainedAdapter, linear: Linear = float32_linear) -> GraphBuilder:
    """Return the graph described above."""
    return SubsampleWriter(adapter, linear).build()
