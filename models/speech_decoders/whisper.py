"""Write Whisper's decoder as two ONNX graphs straight from CTranslate2 weights.

The memory, which is run once for an utterance of F encoder states:

    states         [F, D] float32       in
    cross_key_i, cross_value_i          out  [F, D], what layer i attends to

The decoder, over dense key/value slots as `models.llms.llama` describes them for `ExactAttention`, and memory that is padded to C
states, a multiple of `SPAN_STEP`:

    embeddings     [T, D] float32       in   of the tokens alone; the graph adds their positions
    positions, write_index, wanted, span, places, kept, key_i, value_i, logits, key_out_i, value_out_i   as there
    cross_key_i, cross_value_i, memory_length   as `models.graph.cross_attention` describes them

A position's results are the same bits whatever else runs, however the tokens are cut, and however long the padding is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.bundle.sections import GraphValues, Shapes, SpeechDecoderSection, count_layers, dimension
from models.encoders.whisper import Arrays, Float64, WhisperWriter, mean_preserving_rotation
from models.graph.cross_attention import CrossAttention
from models.graph.linear import Linear, float32_linear
from models.graph.packed_attention import PackedAttention, SlotPair
from models.graph.silent_rest import SilentRest
from models.graph.writer import GraphBuilder

PREFIX = "decoder/"


class WhisperDecoderSection(SpeechDecoderSection):
    """Whisper's decoder in `bundle.json`."""

    def graph_values(self, shapes: Shapes) -> GraphValues:
        return {
            "layers": count_layers(shapes, "key"),
            "embedding_size": dimension(shapes, "embeddings", -1),
            "vocabulary_size": dimension(shapes, "logits", 1),
            "max_positions": dimension(shapes, "key_0", 1),
        }

    def memory_values(self, shapes: Shapes) -> GraphValues:
        return {
            "layers": count_layers(shapes, "cross_key"),
            "embedding_size": dimension(shapes, "cross_key_0", 1),
        }


@dataclass(frozen=True)
class WhisperDecoderConfig:
    """The shape of a decoder, with the names that `PackedAttention` reads."""

    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    max_positions: int
    vocabulary_size: int


def read_config(arrays: Arrays) -> WhisperDecoderConfig:
    """Return the shape of the decoder in CTranslate2 weights."""
    heads = int(arrays[f"{PREFIX}num_heads"])
    positions, width = arrays[f"{PREFIX}position_encodings/encodings"].shape
    layers = sum(name.startswith(f"{PREFIX}layer_") and name.endswith("/ffn/linear_0/bias") for name in arrays)
    return WhisperDecoderConfig(layers, heads, heads, width // heads, positions, len(arrays[f"{PREFIX}embeddings/weight"]))


class WhisperDecoderWriter(WhisperWriter):
    """Adds the parts of both graphs."""

    def __init__(self, name: str, arrays: Arrays, linear: Linear) -> None:
        super().__init__(GraphBuilder(name), arrays, PREFIX, linear)
        self.config = read_config(arrays)
        self.width = self.config.heads * self.config.head_size


def build_memory(arrays: Arrays, linear: Linear = float32_linear) -> GraphBuilder:
    """Return the graph of the memory, described above."""
    writer = WhisperDecoderWriter("whisper_memory", arrays, linear)
    graph = writer.graph
    states = graph.input("states", np.float32, ["states", writer.width])
    for layer in range(writer.config.layers):
        packed = writer.linear(states, f"layer_{layer}/attention/linear_1")
        for name, value in zip(("key", "value"), graph.nodes("Split", packed, outputs=2, axis=-1, num_outputs=2), strict=True):
            graph.output(value, f"cross_{name}_{layer}", np.float32, ["states", writer.width])
    return graph


def build_decoder(
    arrays: Arrays,
    *,
    max_positions: int,
    linear: Linear = float32_linear,
    head: Linear = float32_linear,
    rest: SilentRest | None = None,
) -> GraphBuilder:
    """Return the graph of the decoder, described above; `head` writes the product that gives the logits.

    With `rest` the encoder's states end with those of the silence behind the audio.
    """
    writer = WhisperDecoderWriter("whisper_decoder", arrays, linear)
    graph, config = writer.graph, writer.config
    positions = graph.input("positions", np.int64, ["rows", "tokens"])
    graph.input("write_index", np.int64, ["rows"])
    own = PackedAttention(graph, config, max_positions)
    hidden = graph.input("embeddings", np.float32, [*own.layout, writer.width])
    wanted = graph.input("wanted", np.int64, ["wanted", len(own.layout)])
    crossing = CrossAttention(graph, config.layers, config.heads, writer.width, rest)
    packed = graph.node("Gather", graph.node("Reshape", positions, graph.integers(-1)), "kept", axis=0)
    table = graph.weight("position_encodings/encodings", writer.weights["position_encodings/encodings"][:max_positions])
    hidden = graph.node("Add", hidden, graph.node("Gather", table, packed, axis=0))
    all_written = []
    for layer in range(config.layers):
        part = f"layer_{layer}/self_attention"
        slots = SlotPair.declare(graph, layer, own.slot_shape)
        attended, written = own.attend(writer.linear(writer.norm(hidden, f"{part}/layer_norm"), f"{part}/linear_0"), slots)
        all_written.append(written)
        hidden = graph.node("Add", hidden, writer.linear(attended, f"{part}/linear_1"))
        part = f"layer_{layer}/attention"
        query = writer.linear(writer.norm(hidden, f"{part}/layer_norm"), f"{part}/linear_0")
        hidden = graph.node("Add", hidden, writer.linear(crossing.attend(query, layer), f"{part}/linear_2"))
        part = f"layer_{layer}/ffn"
        inner = graph.node("Gelu", writer.linear(writer.norm(hidden, f"{part}/layer_norm"), f"{part}/linear_0"))
        hidden = graph.node("Add", hidden, writer.linear(inner, f"{part}/linear_1"))
    last = writer.norm(graph.node("GatherND", hidden, wanted), "layer_norm")
    logits = head(graph, last, "projection/weight", writer.weights["projection/weight"])
    if "projection/bias" in writer.weights:
        logits = graph.node("Add", logits, writer.weight("projection/bias"))
    graph.output(logits, "logits", np.float32, ["wanted", config.vocabulary_size])
    for layer, written in enumerate(all_written):
        written.output(graph, layer, own.slot_shape)
    return graph


def embedding_table(arrays: Arrays, dtype: npt.DTypeLike = np.float16) -> npt.NDArray[np.floating]:
    """Return the embeddings of tokens [vocabulary, D] to save as `.npy`."""
    return arrays[f"{PREFIX}embeddings/weight"].astype(dtype)


def rotated_decoder(arrays: Arrays) -> Arrays:
    """Return the weights of a decoder that computes the same logits, with no outliers among its channels.

    As `models.encoders.whisper.rotated_encoder`; the last normalisation's gain and bias go into the projection.
    """
    weights: dict[str, Float64] = {
        name.removeprefix(PREFIX): np.asarray(array, np.float64) for name, array in arrays.items() if name.startswith(PREFIX)
    }
    rotation = mean_preserving_rotation(weights["embeddings/weight"].shape[1])
    for table in ("embeddings/weight", "position_encodings/encodings"):
        weights[table] = weights[table] @ rotation.T
    for layer in range(read_config(arrays).layers):
        for part, output in (("self_attention", "linear_1"), ("attention", "linear_2"), ("ffn", "linear_1")):
            name = f"layer_{layer}/{part}"
            _absorb_norm(weights, f"{name}/layer_norm", f"{name}/linear_0", rotation)
            weights[f"{name}/{output}/weight"] = rotation @ weights[f"{name}/{output}/weight"]
            weights[f"{name}/{output}/bias"] = rotation @ weights[f"{name}/{output}/bias"]
    weights.setdefault("projection/bias", np.zeros(len(weights["projection/weight"])))
    _absorb_norm(weights, "layer_norm", "projection", rotation)
    return {f"{PREFIX}{name}": np.asarray(array, np.float32, order="C") for name, array in weights.items()}


def _absorb_norm(weights: dict[str, Float64], norm: str, reader: str, rotation: Float64) -> None:
    gain, shift, read = weights[f"{norm}/gamma"], weights[f"{norm}/beta"], weights[f"{reader}/weight"]
    weights[f"{reader}/bias"] = weights[f"{reader}/bias"] + read @ shift
    weights[f"{reader}/weight"] = read * gain @ rotation.T
    weights[f"{norm}/gamma"], weights[f"{norm}/beta"] = np.ones_like(gain), np.zeros_like(shift)


def read_tokens(tokens: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `tokens` of a bundle from the special tokens by name and the `config.json` of a CTranslate2 folder."""
    named = {
        "start": "startoftranscript",
        "end": "endoftext",
        "transcribe": "transcribe",
        "translate": "translate",
        "no_timestamps": "notimestamps",
        "no_speech": "nocaptions" if "<|nocaptions|>" in tokens else "nospeech",
        "previous": "startofprev",
    }
    by_id = {id: name for name, id in tokens.items()}
    return {
        **{name: tokens[f"<|{token}|>"] for name, token in named.items()},
        "languages": {by_id[id].strip("<|>"): id for id in config["lang_ids"]},
        "suppressed": tuple(config["suppress_ids"]),
        "suppressed_first": tuple(config["suppress_ids_begin"]),
    }
