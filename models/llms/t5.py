"""Write T5 encoder-decoders (T5 1.1, mT5, mT0: gated feed-forward, no biases) as two ONNX graphs straight from their weights.

The encoder, which a prefill runs once over R rows of T positions, instruction and speech together:

    embeddings   [R, T, D] float32    in
    length       [R] int64            in   how many positions of each row are true; the rest is padding
    cross_key_i, cross_value_i        out  [R, H, T, h], what decoder layer i attends to

The decoder, with slots as in `models.llms.llama`; a text begins with the decoder's start token at position 0:

    embeddings, positions, write_index, wanted, key_i, value_i, logits, key_out_i, value_out_i   as there, slots [R, H, P, h]
    cross_key_i, cross_value_i        in   [R, H, "encoded", h] as the encoder gave them
    cross_length [R] int64            in   the encoder's `length`

Positions come in as a bias per distance, which holds the mask too: it is computed once a step and shared by all layers. T5 does
not scale scores.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder, Shape
from models.llms.llama import MASKED


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


@dataclass(frozen=True)
class T5:
    """A model: `weights` by Hugging Face names, with `lm_head.weight`."""

    config: T5Config
    weights: dict[str, Float32]


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
    """The parts that encoder and decoder share; `linear` writes the layers' products."""

    def __init__(self, name: str, model: T5, stack: str, linear: Linear, float_type: npt.DTypeLike) -> None:
        self.graph = GraphBuilder(name, float_type)
        self.config, self.weights, self.stack, self.write_linear = model.config, model.weights, stack, linear

    def constant(self, *numbers: int) -> str:
        """Return a constant list of integers."""
        return self.graph.weight(f"numbers.{'.'.join(map(str, numbers))}", np.array(numbers, np.int64))

    def norm(self, value: str, name: str) -> str:
        weight = self.graph.weight(name, self.weights[f"{name}.weight"])
        return self.graph.node("RMSNormalization", value, weight, axis=-1, epsilon=self.config.norm_epsilon)

    def product(self, value: str, prefix: str, *names: str) -> str:
        """Write `value` times several weights as one product."""
        weight = np.concatenate([self.weights[f"{prefix}.{name}.weight"] for name in names])
        return self.write_linear(self.graph, value, f"{prefix}.{'_'.join(names)}.weight", weight)

    def by_head(self, value: str, parts: int) -> list[str]:
        """[R, S, parts * H * h] -> `parts` times [R, H, S, h]."""
        graph, config = self.graph, self.config
        split = graph.node("Reshape", value, self.constant(0, 0, parts * config.heads, config.head_size))
        turned = graph.node("Transpose", split, perm=[0, 2, 1, 3])
        return graph.nodes("Split", turned, outputs=parts, axis=1, num_outputs=parts) if parts > 1 else [turned]

    def joined(self, value: str) -> str:
        """[R, H, S, h] -> [R, S, H * h]."""
        turned = self.graph.node("Transpose", value, perm=[0, 2, 1, 3])
        return self.graph.node("Reshape", turned, self.constant(0, 0, self.config.heads * self.config.head_size))

    def distance_table(self, distances: npt.NDArray[np.int64], *, both_ways: bool) -> str:
        """Return the bias of each distance [distances, H]."""
        name = f"{self.stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        buckets = distance_bucket(distances, self.config, both_ways=both_ways)
        return self.graph.weight(f"{self.stack}.distance_bias", self.weights[name][buckets])

    def masked(self, seen: str, bias: str) -> str:
        return self.graph.node("Where", seen, bias, self.graph.weight("masked", np.array(MASKED)))

    def feed_forward(self, hidden: str, layer: str) -> str:
        normed = self.norm(hidden, f"{layer}.layer_norm")
        both = self.product(normed, f"{layer}.DenseReluDense", "wi_0", "wi_1")
        gate, up = self.graph.nodes("Split", both, outputs=2, axis=-1, num_outputs=2)
        gated = self.graph.node("Mul", self.graph.node("Gelu", gate, approximate="tanh"), up)
        return self.graph.node("Add", hidden, self.product(gated, f"{layer}.DenseReluDense", "wo"))


def build_t5_encoder(
    model: T5, *, max_tokens: int, linear: Linear = float32_linear, float_type: npt.DTypeLike = np.float32
) -> GraphBuilder:
    """Return the encoder described above, for at most `max_tokens` positions."""
    writer = T5Writer("t5_encoder", model, "encoder", linear, float_type)
    graph, config = writer.graph, model.config
    hidden = graph.input("embeddings", np.float32, ["rows", "tokens", config.embedding_size])
    length = graph.input("length", np.int64, ["rows"])
    bias = _encoder_bias(writer, hidden, length, max_tokens)
    for layer in range(config.layers):
        block = f"encoder.block.{layer}"
        attention = f"{block}.layer.0.SelfAttention"
        normed = writer.norm(hidden, f"{block}.layer.0.layer_norm")
        parts = writer.by_head(writer.product(normed, attention, "q", "k", "v"), 3)
        attended = writer.joined(graph.node("Attention", *parts, bias, scale=1.0))
        hidden = graph.node("Add", hidden, writer.product(attended, attention, "o"))
        hidden = writer.feed_forward(hidden, f"{block}.layer.1")
    states = writer.norm(hidden, "encoder.final_layer_norm")
    for layer in range(config.layers):
        packed = writer.product(states, f"decoder.block.{layer}.layer.1.EncDecAttention", "k", "v")
        for name, value in zip(("key", "value"), writer.by_head(packed, 2), strict=True):
            shape: Shape = ["rows", config.heads, "tokens", config.head_size]
            graph.output(value, f"cross_{name}_{layer}", graph.float_type, shape)
    return graph


def build_t5_decoder(
    model: T5, *, max_positions: int, linear: Linear = float32_linear, float_type: npt.DTypeLike = np.float32
) -> GraphBuilder:
    """Return the decoder described above with slots of `max_positions`."""
    writer = T5Writer("t5_decoder", model, "decoder", linear, float_type)
    graph, config = writer.graph, model.config
    hidden = graph.input("embeddings", np.float32, ["rows", "tokens", config.embedding_size])
    positions = graph.input("positions", np.int64, ["rows", "tokens"])
    graph.input("write_index", np.int64, ["rows"])
    wanted = graph.input("wanted", np.int64, ["wanted", 2])
    graph.input("cross_length", np.int64, ["rows"])
    bias = _decoder_bias(writer, positions, max_positions)
    slot_shape: Shape = ["rows", config.heads, max_positions, config.head_size]
    cross_shape: Shape = ["rows", config.heads, "encoded", config.head_size]
    all_written = []
    for layer in range(config.layers):
        block = f"decoder.block.{layer}"
        attention = f"{block}.layer.0.SelfAttention"
        slots = [graph.input(f"{name}_{layer}", graph.float_type, slot_shape) for name in ("key", "value")]
        crossed = [graph.input(f"cross_{name}_{layer}", graph.float_type, cross_shape) for name in ("key", "value")]
        normed = writer.norm(hidden, f"{block}.layer.0.layer_norm")
        query, *new = writer.by_head(writer.product(normed, attention, "q", "k", "v"), 3)
        written = [graph.node("TensorScatter", slot, each, "write_index", axis=2) for slot, each in zip(slots, new, strict=True)]
        all_written.append(written)
        attended = writer.joined(graph.node("Attention", query, *written, bias, scale=1.0))
        hidden = graph.node("Add", hidden, writer.product(attended, attention, "o"))

        attention = f"{block}.layer.1.EncDecAttention"
        normed = writer.norm(hidden, f"{block}.layer.1.layer_norm")
        (query,) = writer.by_head(writer.product(normed, attention, "q"), 1)
        attended = writer.joined(graph.node("Attention", query, *crossed, "", "", "", "cross_length", scale=1.0))
        hidden = graph.node("Add", hidden, writer.product(attended, attention, "o"))
        hidden = writer.feed_forward(hidden, f"{block}.layer.2")
    last = graph.node("GatherND", writer.norm(hidden, "decoder.final_layer_norm"), wanted)
    logits = float32_linear(graph, last, "lm_head.weight", model.weights["lm_head.weight"])
    graph.output(logits, "logits", np.float32, ["wanted", config.vocabulary_size])
    for layer, written in enumerate(all_written):
        for name, value in zip(("key", "value"), written, strict=True):
            graph.output(value, f"{name}_out_{layer}", graph.float_type, slot_shape)
    return graph


def _encoder_bias(writer: T5Writer, hidden: str, length: str, max_tokens: int) -> str:
    """[R, H, T, T]: the bias of each distance, masked where the key is padding."""
    graph = writer.graph
    tokens = graph.node("Squeeze", graph.node("Shape", hidden, start=1, end=2))
    zero, one = (graph.weight(f"number.{number}", np.array(number, np.int64)) for number in (0, 1))
    places = graph.node("Range", zero, tokens, one)
    distance = graph.node("Sub", places, graph.node("Unsqueeze", places, writer.constant(1)))
    table = writer.distance_table(np.arange(1 - max_tokens, max_tokens), both_ways=True)
    biases = graph.node("Gather", table, graph.node("Add", distance, writer.constant(max_tokens - 1)))
    bias = graph.node("Unsqueeze", graph.node("Transpose", biases, perm=[2, 0, 1]), writer.constant(0))
    return writer.masked(graph.node("Less", places, graph.node("Unsqueeze", length, writer.constant(1, 2, 3))), bias)


def _decoder_bias(writer: T5Writer, positions: str, max_positions: int) -> str:
    """[R, H, S, P]: the bias of each distance, masked where the key is later than the query."""
    graph = writer.graph
    places = graph.weight("places", np.arange(max_positions, dtype=np.int64))
    back = graph.node("Sub", graph.node("Unsqueeze", positions, writer.constant(2)), places)
    zero = writer.constant(0)
    table = writer.distance_table(-np.arange(max_positions), both_ways=False)
    bias = graph.node("Transpose", graph.node("Gather", table, graph.node("Max", back, zero)), perm=[0, 3, 1, 2])
    seen = graph.node("Unsqueeze", graph.node("GreaterOrEqual", back, zero), writer.constant(1))
    return writer.masked(seen, bias)
