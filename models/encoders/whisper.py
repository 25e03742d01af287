"""Write Whisper's encoder as an ONNX graph straight from CTranslate2 weights.

    features [80, frames] float32             in    log-mel features of one utterance
    states   [ceil(frames / 2), width] float32 out   and those of the rest of the window behind them, where there is one

One utterance a run, at its own length: the position table is sliced where Whisper pads the audio to 30 s. With neither
padding nor a batch, an utterance's states cannot depend on what else is being served.

Whisper was trained on windows of 30 s, and writes worse and in loops where it hears less. So the graph can add the rest of the
window itself (`models.graph.silent_rest`), at a small part of its price.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from models.bundle.sections import MelEncoderSection
from models.features.log_mel import HOPS_OF_A_FRAME
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.rotation import random_rotation
from models.graph.silent_rest import SilentRest
from models.graph.writer import GraphBuilder

Arrays = dict[str, npt.NDArray[np.generic]]
Float64 = npt.NDArray[np.float64]


FIRST_SILENT_STATES = 100
"""How many states of silence a graph adds whose bundle does not say."""


class WhisperSection(MelEncoderSection):
    """Whisper's encoder in `bundle.json`; `hop_multiple` and `silent_frames` are those of `models.features.log_mel.LogMel`.

    With `silent_window_s`, states are computed as in a window of that length whose rest is silence (`SilentRest`), for which the
    graph adds `silent_states`. It drops the states of `silent_frames`, which only the convolutions hear.
    """

    features = "log_mel"
    silent_window_s: NonNegativeFloat = 0.0
    silent_states: NonNegativeInt = FIRST_SILENT_STATES
    hop_multiple: PositiveInt = HOPS_OF_A_FRAME
    silent_frames: NonNegativeInt = 0

    def feature_options(self) -> dict[str, Any]:
        return {**super().feature_options(), "hop_multiple": self.hop_multiple, "silent_frames": self.silent_frames}

    @property
    def dropped(self) -> int:
        """The states that the graph drops."""
        return self.silent_frames // 2

    @property
    def rest(self) -> SilentRest | None:
        """The silence that the graph adds. Raises `ValueError` where an older release has written the graph in another way."""
        if not self.silent_window_s:
            return None
        rest = silent_rest(self.silent_window_s)
        if len(rest.groups()) != self.silent_states:
            raise ValueError("an older release condensed the silence behind the audio in another way: pull the model again")
        return rest

    @property
    def added_states(self) -> int:
        return self.silent_states if self.silent_window_s else 0


# The names of CTranslate2 in its Whisper models.
PREFIX = "encoder/"
LAYER_NORM_EPSILON = 1e-5
STATES_PER_S = 50.0
"""Before states are pooled."""
INTO_STREAM = "encoder/into_stream/weight"
"""[width, width]: rotates what the convolutions give, before positions are added."""
OUT_OF_STREAM = "encoder/out_of_stream/weight"
"""[width, width]: turns the last normalisation's result back; the normalisation's own gain and bias come after it."""


def silent_rest(window_s: float) -> SilentRest:
    """Return the silence of a window of so many seconds."""
    return SilentRest(round(window_s * STATES_PER_S))


class WhisperWriter:
    """Adds the layers of both of Whisper's stacks; weights become float32, linear products are written by `write_linear`."""

    def __init__(self, graph: GraphBuilder, arrays: Arrays, prefix: str, write_linear: Linear) -> None:
        """`arrays` are by CTranslate2's names, of which those that begin with `prefix` count."""
        self.graph, self.write_linear = graph, write_linear
        self.weights: dict[str, Float32] = {
            name.removeprefix(prefix): array.astype(np.float32) for name, array in arrays.items() if name.startswith(prefix)
        }

    def weight(self, name: str) -> str:
        return self.graph.weight(name, self.weights[name])

    def norm(self, x: str, name: str) -> str:
        gain, shift = self.weight(f"{name}/gamma"), self.weight(f"{name}/beta")
        return self.graph.node("LayerNormalization", x, gain, shift, epsilon=LAYER_NORM_EPSILON)

    def linear(self, x: str, name: str) -> str:
        product = self.write_linear(self.graph, x, f"{name}/weight", self.weights[f"{name}/weight"])
        return self.graph.node("Add", product, self.weight(f"{name}/bias"))


class WhisperEncoderWriter(WhisperWriter):
    """Adds the encoder's parts to a graph."""

    def __init__(
        self,
        arrays: Arrays,
        linear: Linear,
        float_type: npt.DTypeLike = np.float32,
        *,
        dropped: int = 0,
        pooled: int = 1,
        rest: SilentRest | None = None,
    ) -> None:
        """Behind the convolutions the last `dropped` states are dropped; `pooled` states at a time are averaged at the end."""
        super().__init__(GraphBuilder("whisper_encoder", float_type), arrays, PREFIX, linear)
        self.dropped, self.pooled, self.rest = dropped, pooled, rest
        self.attention_bias: tuple[str, ...] = ()
        self.heads = int(self.weights["num_heads"])
        self.layers = sum(name.endswith("/ffn/linear_0/bias") for name in self.weights)
        self.width = len(self.weights["layer_norm/gamma"])

    def build(self) -> GraphBuilder:
        graph = self.graph
        states = self.begin_states()
        for layer in range(self.layers):
            attention, feed_forward = f"layer_{layer}/self_attention", f"layer_{layer}/ffn"
            states = graph.node("Add", states, self.attend(self.norm(states, f"{attention}/layer_norm"), attention))
            inner = self.gelu(self.linear(self.norm(states, f"{feed_forward}/layer_norm"), f"{feed_forward}/linear_0"))
            states = graph.node("Add", states, self.linear(inner, f"{feed_forward}/linear_1"))
        states = graph.node("Squeeze", self.last_norm(self.pool(states)), self.axis_of_batch)
        graph.output(states, "states", np.float32, ["states", self.width])
        return graph

    @property
    def axis_of_batch(self) -> str:
        return self.graph.weight("axis.batch", np.array([0], np.int64))

    def begin_states(self) -> str:
        """Declare the features, and return what the first layer reads [1, states, width]."""
        graph = self.graph
        mel_bins = self.weights["conv1/weight"].shape[1]
        features = graph.input("features", np.float32, [mel_bins, "frames"])
        x = graph.node("Unsqueeze", features, self.axis_of_batch)
        x = self.convolve(self.convolve(x, "conv1", stride=1), "conv2", stride=2)
        states = self.rotate(self.drop(graph.node("Transpose", x, perm=[0, 2, 1])), INTO_STREAM)
        self.length = graph.node("Shape", states, start=1, end=2)
        return self.add_positions(states) if self.rest is None else self.add_rest(states, self.rest)

    def convolve(self, x: str, name: str, stride: int) -> str:
        weight, bias = self.weight(f"{name}/weight"), self.weight(f"{name}/bias")
        return self.gelu(self.graph.node("Conv", x, weight, bias, kernel_shape=[3], pads=[1, 1], strides=[stride]))

    def drop(self, states: str) -> str:
        """Leave out the last states, of silence behind the audio that only the convolutions hear."""
        if not self.dropped:
            return states
        start, end, axis = (
            self.graph.weight(f"drop.{name}", np.array([at], np.int64))
            for name, at in (("start", 0), ("end", -self.dropped), ("axis", 1))
        )
        return self.graph.node("Slice", states, start, end, axis)

    def pool(self, states: str) -> str:
        """Average neighbouring states; those that are too few at the end are left out."""
        if self.pooled == 1:
            return states
        graph = self.graph
        by_channel = graph.node("Transpose", states, perm=[0, 2, 1])
        pooled = graph.node("AveragePool", by_channel, kernel_shape=[self.pooled], strides=[self.pooled])
        return graph.node("Transpose", pooled, perm=[0, 2, 1])

    def number(self, value: int) -> str:
        """Return a constant [1]."""
        return self.graph.integers(value, name="number")

    def add_positions(self, states: str) -> str:
        table = self.graph.node("Slice", self.weight("position_encodings/encodings"), self.number(0), self.length, self.number(0))
        return self.graph.node("Add", states, table)

    def add_rest(self, states: str, rest: SilentRest) -> str:
        """Return the states with their positions, and those of the rest of the window behind them; set the attention's bias."""
        graph, zero = self.graph, self.graph.weight("rest.zero", np.zeros(1, self.graph.float_type))
        positions, silent_bias = rest.write(graph, self.length)
        # The last of the audio's own states hears silence already.
        silence = graph.node("Slice", states, self.number(-1), self.number(np.iinfo(np.int64).max), self.number(1))
        table = graph.node("Gather", self.weight("position_encodings/encodings"), positions, axis=0)
        bias = graph.node("Concat", graph.node("Expand", zero, self.length), silent_bias, axis=0)
        both = graph.node("Concat", *[graph.node("Shape", bias)] * 2, axis=0)
        self.attention_bias = (graph.node("Expand", bias, both),)
        return graph.node("Concat", self.add_positions(states), graph.node("Add", silence, table), axis=1)

    def last_norm(self, x: str) -> str:
        graph, gain, bias = self.graph, self.weights["layer_norm/gamma"], self.weight("layer_norm/beta")
        one, zero = graph.weight("last.one", np.ones_like(gain)), graph.weight("last.zero", np.zeros_like(gain))
        normed = graph.node("LayerNormalization", x, one, zero, epsilon=LAYER_NORM_EPSILON)
        return graph.node("Add", graph.node("Mul", self.rotate(normed, OUT_OF_STREAM), self.weight("layer_norm/gamma")), bias)

    def rotate(self, x: str, name: str) -> str:
        """Write `x` times the weight `name` of a rotated encoder; return `x` itself for a plain one."""
        weight = self.weights.get(name.removeprefix(PREFIX))
        return x if weight is None else float32_linear(self.graph, x, name, weight)

    def gelu(self, x: str) -> str:
        return self.graph.node("Gelu", x)

    def attend(self, x: str, name: str) -> str:
        packed = self.linear(x, f"{name}/linear_0")
        query, key, value = self.graph.nodes("Split", packed, outputs=3, axis=-1, num_outputs=3)
        return self.linear(self.mix(query, key, value), f"{name}/linear_1")

    def mix(self, query: str, key: str, value: str) -> str:
        """Return the attention [1, states, width] of all states to all."""
        return self.graph.node(
            "Attention", query, key, value, *self.attention_bias, q_num_heads=self.heads, kv_num_heads=self.heads
        )


def build_encoder(
    arrays: Arrays, linear: Linear = float32_linear, *, dropped: int = 0, pooled: int = 1, rest: SilentRest | None = None
) -> GraphBuilder:
    """Return the graph described above; `dropped`, `pooled` and `rest` are those of the writer."""
    return WhisperEncoderWriter(arrays, linear, dropped=dropped, pooled=pooled, rest=rest).build()


def mean_preserving_rotation(size: int) -> Float64:
    """Return an orthogonal matrix [size, size] that maps the vector of ones to itself."""
    basis = np.linalg.qr(np.concatenate([np.ones((size, 1)), np.eye(size)[:, 1:]], axis=1))[0]
    inner = np.eye(size)
    inner[1:, 1:] = random_rotation(size - 1)
    rotation: Float64 = basis @ inner @ basis.T
    return rotation


def rotated_encoder(arrays: Arrays) -> Arrays:
    """Return the weights of an encoder that computes the same states, with no outliers among its channels.

    The rotation leaves the mean of a state as it is, so layer normalisation commutes with it once gains and biases are in the
    products that read its result. `arrays` and the result have the names of CTranslate2.
    """
    weights = {name: np.asarray(array, np.float64) for name, array in arrays.items() if name.startswith("encoder/")}
    rotation = mean_preserving_rotation(len(weights["encoder/layer_norm/gamma"]))
    weights["encoder/position_encodings/encodings"] = weights["encoder/position_encodings/encodings"] @ rotation.T
    norms = [name for name in weights if name.endswith("/layer_norm/gamma") and name != "encoder/layer_norm/gamma"]
    for name in norms:
        part = name.removesuffix("/layer_norm/gamma")
        gain, bias = weights[name], weights[f"{part}/layer_norm/beta"]
        read = weights[f"{part}/linear_0/weight"]
        weights[f"{part}/linear_0/bias"] = weights[f"{part}/linear_0/bias"] + read @ bias
        weights[f"{part}/linear_0/weight"] = read * gain @ rotation.T
        weights[name], weights[f"{part}/layer_norm/beta"] = np.ones_like(gain), np.zeros_like(bias)
        weights[f"{part}/linear_1/weight"] = rotation @ weights[f"{part}/linear_1/weight"]
        weights[f"{part}/linear_1/bias"] = rotation @ weights[f"{part}/linear_1/bias"]
    weights[INTO_STREAM], weights[OUT_OF_STREAM] = rotation, rotation.T
    return {name: np.asarray(array, np.float32, order="C") for name, array in weights.items()}
