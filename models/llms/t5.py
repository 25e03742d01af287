"""Write T5 encoder-decoders (T5, mT5, mT0; no biases) as ONNX graphs straight from their weights.

The memory, which is run once for a prompt of F positions, instruction and speech together:

    states                        [F, D] float32     in   the embeddings of the prompt
    cross_key_i, cross_value_i    [F, H * h]         out  what decoder layer i attends to

The decoder, with slots and packed rows as in `models.llms.llama` and memory as in `models.graph.cross_attention`; an answer
begins with the decoder's start token at position 0. A position's logits are the same bits whatever else runs.

Positions come in as a bias per distance, which holds the mask too: it is computed once a step and shared by all layers. T5 does
not scale scores.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.bundle.sections import EncoderDecoderSection, GraphValues, Shapes, count_layers, dimension
from models.graph.cross_attention import CrossAttention
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.packed_attention import PackedAttention, SlotPair
from models.graph.writer import MASKED, GraphBuilder

EMBEDDING = "shared.weight"


class T5Section(EncoderDecoderSection):
    """A T5 in `bundle.json`."""

    def graph_values(self, shapes: Shapes) -> GraphValues:
        width = dimension(shapes, "key_0", -1)
        return {
            "layers": count_layers(shapes, "key"),
            "key_value_heads": width // self.head_size if isinstance(width, int) else width,
            "head_size": width // self.key_value_heads if isinstance(width, int) else width,
            "max_positions": dimension(shapes, "key_0", 1),
            "embedding_size": dimension(shapes, "embeddings", -1),
            "vocabulary_size": dimension(shapes, "logits", 1),
        }

    def memory_values(self, shapes: Shapes) -> GraphValues:
        return {
            "layers": count_layers(shapes, "cross_key"),
            "embedding_size": dimension(shapes, "states", 1),
        }


@dataclass(frozen=True)
class T5Config:
    """The shape of a T5 model; `layers` are those of the encoder, and the decoder has as many."""

    layers: int
    embedding_size: int
    heads: int
    head_size: int
    feed_forward_size: int
    vocabulary_size: int
    distance_buckets: int
    largest_distance: int
    norm_epsilon: float

    @property
    def key_value_heads(self) -> int:
        return self.heads


@dataclass(frozen=True)
class T5:
    """A model: `weights` by Hugging Face names, with `lm_head.weight`. Feed-forward layers without a `wi_0` are not gated."""

    config: T5Config
    weights: Mapping[str, Float32]


def distance_bucket(distance: npt.NDArray[np.int64], config: T5Config, *, both_ways: bool) -> npt.NDArray[np.int64]:
    """Return T5's bucket of each distance (key's position minus query's): exact while near, logarithmic beyond."""
    buckets = config.distance_buckets
    offset = np.zeros_like(distance)
    if both_ways:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    far = np.log(np.maximum(distance, 1) / exact) / np.log(config.largest_distance / exact) * (buckets - exact)
    beyond = np.minimum(exact + np.maximum(far, 0).astype(np.int64), buckets - 1)
    return offset + np.where(distance < exact, distance, beyond)


class T5Writer:
    """The parts that encoder and decoder share; `linear` writes the layers' products. Queries are multiplied by `query_scale`."""

    def __init__(self, name: str, model: T5, stack: str, linear: Linear, query_scale: float = 1.0) -> None:
        self.graph = GraphBuilder(name)
        self.config, self.weights, self.stack, self.write_linear = model.config, model.weights, stack, linear
        self.query_scale = query_scale

    def norm(self, value: str, name: str) -> str:
        weight = self.graph.weight(name, self.weights[f"{name}.weight"])
        return self.graph.node("RMSNormalization", value, weight, axis=-1, epsilon=self.config.norm_epsilon)

    def product(self, value: str, prefix: str, *names: str) -> str:
        """Write `value` times several weights as one product."""
        scales = {"q": np.float32(self.query_scale)}
        weight = np.concatenate([self.weights[f"{prefix}.{name}.weight"] * scales.get(name, np.float32(1)) for name in names])
        return self.write_linear(self.graph, value, f"{prefix}.{'_'.join(names)}.weight", weight)

    def distance_table(self, distances: npt.NDArray[np.int64], *, both_ways: bool) -> str:
        """Return the bias of each distance [distances, H]."""
        name = f"{self.stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        buckets = distance_bucket(distances, self.config, both_ways=both_ways)
        return self.graph.weight(f"{self.stack}.distance_bias", self.weights[name][buckets])

    def feed_forward(self, hidden: str, layer: str) -> str:
        normed = self.norm(hidden, f"{layer}.layer_norm")
        if f"{layer}.DenseReluDense.wi_0.weight" not in self.weights:
            inner = self.graph.node("Relu", self.product(normed, f"{layer}.DenseReluDense", "wi"))
            return self.graph.node("Add", hidden, self.product(inner, f"{layer}.DenseReluDense", "wo"))
        both = self.product(normed, f"{layer}.DenseReluDense", "wi_0", "wi_1")
        gate, up = self.graph.nodes("Split", both, outputs=2, axis=-1, num_outputs=2)
        gated = self.graph.node("Mul", self.graph.node("Gelu", gate, approximate="tanh"), up)
        return self.graph.node("Add", hidden, self.product(gated, f"{layer}.DenseReluDense", "wo"))


class BiasedAttention(PackedAttention):
    """`PackedAttention` with T5's bias of each distance in its mask."""

    def __init__(self, writer: T5Writer, max_positions: int) -> None:
        self._writer = writer
        super().__init__(writer.graph, writer.config, max_positions)

    def write_mask(self, span: str) -> str:
        """Return the mask [B, H, S * rows per position, span]."""
        rows = self.graph.node("Reshape", self.row_positions(), self.graph.integers(0, -1))
        return _decoder_bias(self._writer, rows, self.slot_positions(span), self.max_positions)


def build_t5_memory(model: T5, *, max_states: int, linear: Linear = float32_linear) -> GraphBuilder:
    """Return the graph of the memory, described above, for prompts of at most `max_states` positions."""
    writer = T5Writer("t5_memory", model, "encoder", linear)
    graph, config = writer.graph, model.config
    given = graph.input("states", np.float32, ["states", config.embedding_size])
    hidden = graph.node("Unsqueeze", given, graph.integers(0))
    states = graph.node("Squeeze", _encode(writer, hidden, _distance_bias(writer, hidden, max_states)), graph.integers(0))
    for layer in range(config.layers):
        packed = writer.product(states, f"decoder.block.{layer}.layer.1.EncDecAttention", "k", "v")
        for name, value in zip(("key", "value"), graph.nodes("Split", packed, outputs=2, axis=-1, num_outputs=2), strict=True):
            graph.output(value, f"cross_{name}_{layer}", np.float32, ["states", config.heads * config.head_size])
    return graph


def build_t5_decoder(
    model: T5, *, max_positions: int, linear: Linear = float32_linear, head: Linear = float32_linear
) -> GraphBuilder:
    """Return the decoder described above with slots of `max_positions`; `head` writes the product that gives the logits."""
    # Attention scales scores, which T5 does not do: the queries' weights undo it.
    writer = T5Writer("t5_decoder", model, "decoder", linear, query_scale=math.sqrt(model.config.head_size))
    graph, config = writer.graph, model.config
    graph.input("positions", np.int64, ["rows", "tokens"])
    graph.input("write_index", np.int64, ["rows"])
    own = BiasedAttention(writer, max_positions)
    crossing = CrossAttention(graph, config.layers, config.heads, config.heads * config.head_size)
    hidden = graph.input("embeddings", np.float32, [*own.layout, config.embedding_size])
    wanted = graph.input("wanted", np.int64, ["wanted", len(own.layout)])
    all_written = []
    for layer in range(config.layers):
        block = f"decoder.block.{layer}"
        part = f"{block}.layer.0.SelfAttention"
        slots = SlotPair.declare(graph, layer, own.slot_shape)
        projected = writer.product(writer.norm(hidden, f"{block}.layer.0.layer_norm"), part, "q", "k", "v")
        attended, written = own.attend(projected, slots)
        all_written.append(written)
        hidden = graph.node("Add", hidden, writer.product(attended, part, "o"))
        part = f"{block}.layer.1.EncDecAttention"
        query = writer.product(writer.norm(hidden, f"{block}.layer.1.layer_norm"), part, "q")
        hidden = graph.node("Add", hidden, writer.product(crossing.attend(query, layer), part, "o"))
        hidden = writer.feed_forward(hidden, f"{block}.layer.2")
    last = graph.node("GatherND", writer.norm(hidden, "decoder.final_layer_norm"), wanted)
    logits = head(graph, last, "lm_head.weight", model.weights["lm_head.weight"])
    graph.output(logits, "logits", np.float32, ["wanted", config.vocabulary_size])
    for layer, written in enumerate(all_written):
        written.output(graph, layer, own.slot_shape)
    return graph


def _encode(writer: T5Writer, hidden: str, bias: str) -> str:
    """Return the encoder's states [R, T, D] of embeddings [R, T, D]."""
    graph, config = writer.graph, writer.config
    for layer in range(config.layers):
        block = f"encoder.block.{layer}"
        attention = f"{block}.layer.0.SelfAttention"
        normed = writer.norm(hidden, f"{block}.layer.0.layer_norm")
        packed = writer.product(normed, attention, "q", "k", "v")
        by_head = graph.node("Reshape", packed, graph.integers(0, 0, 3 * config.heads, config.head_size))
        parts = graph.nodes("Split", graph.node("Transpose", by_head, perm=[0, 2, 1, 3]), outputs=3, axis=1, num_outputs=3)
        joined = graph.node("Transpose", graph.node("Attention", *parts, bias, scale=1.0), perm=[0, 2, 1, 3])
        attended = graph.node("Reshape", joined, graph.integers(0, 0, config.heads * config.head_size))
        hidden = graph.node("Add", hidden, writer.product(attended, attention, "o"))
        hidden = writer.feed_forward(hidden, f"{block}.layer.1")
    return writer.norm(hidden, "encoder.final_layer_norm")


def _distance_bias(writer: T5Writer, hidden: str, max_tokens: int) -> str:
    """Return the bias [1, H, T, T] of each distance between the positions of hidden [R, T, D]."""
    graph = writer.graph
    tokens = graph.node("Squeeze", graph.node("Shape", hidden, start=1, end=2))
    zero, one = (graph.weight(f"number.{number}", np.array(number, np.int64)) for number in (0, 1))
    places = graph.node("Range", zero, tokens, one)
    distance = graph.node("Sub", places, graph.node("Unsqueeze", places, graph.integers(1)))
    table = writer.distance_table(np.arange(1 - max_tokens, max_tokens), both_ways=True)
    biases = graph.node("Gather", table, graph.node("Add", distance, graph.integers(max_tokens - 1)))
    return graph.node("Unsqueeze", graph.node("Transpose", biases, perm=[2, 0, 1]), graph.integers(0))


def _decoder_bias(writer: T5Writer, positions: str, places: str, max_positions: int) -> str:
    """Return the bias [R, H, S, P] of each distance between queries at `positions` [R, S] and keys at `places` [P].

    Keys that are later than the query are masked.
    """
    graph = writer.graph
    back = graph.node("Sub", graph.node("Unsqueeze", positions, graph.integers(2)), places)
    zero = graph.integers(0)
    table = writer.distance_table(-np.arange(max_positions), both_ways=False)
    bias = graph.node("Transpose", graph.node("Gather", table, graph.node("Max", back, zero)), perm=[0, 3, 1, 2])
    seen = graph.node("Unsqueeze", graph.node("GreaterOrEqual", back, zero), graph.integers(1))
    return graph.node("Where", seen, bias, graph.weight("masked", np.array(MASKED)))
