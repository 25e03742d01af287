"""Write Qwen3-ASR's encoder as an ONNX graph.

    features [mel bins, frames] float32  in   log-mel features of one utterance
    states   [states, width]    float32  out  13 a second

Each second is a chunk of its own: three 2-D convolutions that halve it, a linear layer, and positions that begin anew. The layers
are Whisper's, but attention stays within windows of several chunks (8 s). A last chunk is filled with zeros, whose states are
dropped; a last window is padded and masked in the attention only.
"""

import numpy as np
import numpy.typing as npt

from models.bundle.sections import MelEncoderSection
from models.encoders.whisper import INTO_STREAM, Arrays, WhisperEncoderWriter
from models.graph.blocks import mask_padding, pad_to_blocks
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import GraphBuilder

CONVOLUTIONS = ("conv2d1", "conv2d2", "conv2d3")
SLOWEST_PERIOD = 10_000.0


class Qwen3AsrSection(MelEncoderSection):
    """Qwen3-ASR's encoder in `bundle.json`."""

    features = "whole_frames"


def halved(length: int) -> int:
    """Return how long a dimension is behind one convolution."""
    return (length + 1) // 2


def states_of(frames: int) -> int:
    """Return how many states a chunk of `frames` frames has."""
    return halved(halved(halved(frames)))


def chunk_positions(count: int, width: int) -> Float32:
    """Return sines, then cosines, of the positions within a chunk [count, width]."""
    half = width // 2
    periods = np.exp(-np.log(SLOWEST_PERIOD) / (half - 1) * np.arange(half))
    angles = np.arange(count)[:, None] * periods
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Qwen3AsrEncoderWriter(WhisperEncoderWriter):
    """Adds the encoder's parts to a graph. The layers' weights have Whisper's names; the convolutions' are their own.

    A chunk has `chunk` frames, an attention's window `chunks` chunks. Values of the graph are `count` [1], the states that the
    audio has, and `span` [1], those of a window, no more than there are.
    """

    count: str
    span: str
    mask: str

    def __init__(
        self, arrays: Arrays, chunk: int, chunks: int, linear: Linear = float32_linear, float_type: npt.DTypeLike = np.float32
    ) -> None:
        super().__init__(arrays, linear, float_type)
        self.graph.name = "qwen3_asr_encoder"
        self.chunk, self.window = chunk, chunks * states_of(chunk)

    def begin_states(self) -> str:
        graph, chunk, own = self.graph, self.chunk, states_of(self.chunk)
        last = self.weights["conv_out/weight"]
        channels = len(self.weights["conv2d3/weight"])
        mel_bins = self.mel_bins(last.shape[1] // channels)
        features = graph.input("features", np.float32, [mel_bins, "frames"])
        frames = graph.node("Shape", features, start=1, end=2)
        padded = pad_to_blocks(graph, features, frames, graph.integers(chunk), axis=1)
        by_chunk = graph.node("Reshape", padded, graph.integers(mel_bins, -1, 1, chunk))
        x = graph.node("Transpose", by_chunk, perm=[1, 2, 0, 3])
        for name in CONVOLUTIONS:
            weight, bias = self.weight(f"{name}/weight"), self.weight(f"{name}/bias")
            x = self.gelu(graph.node("Conv", x, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]))
        x = graph.node("Reshape", graph.node("Transpose", x, perm=[0, 3, 1, 2]), graph.integers(0, own, last.shape[1]))
        states = self.rotate(float32_linear(graph, x, "conv_out/weight", last), INTO_STREAM)
        states = graph.node("Add", states, self.weight("position_encodings/encodings"))
        states = graph.node("Reshape", states, graph.integers(1, -1, self.width))
        self.count = self.count_states(frames, own)
        self.span = graph.node("Min", self.count, graph.integers(self.window))
        self.mask = self.write_mask()
        return self.first(states, self.count)

    def mel_bins(self, last: int) -> int:
        """Return how many bins the features have, by how many are left behind the convolutions."""
        return last << len(CONVOLUTIONS)

    def count_states(self, frames: str, own: int) -> str:
        """Return how many states the audio has [1]: those of its whole chunks, and of the rest."""
        graph = self.graph
        one, two = graph.integers(1), graph.integers(2)
        whole = graph.node("Mul", graph.node("Div", frames, graph.integers(self.chunk)), graph.integers(own))
        rest = graph.node("Mod", frames, graph.integers(self.chunk))
        for _ in CONVOLUTIONS:
            rest = graph.node("Div", graph.node("Add", rest, one), two)
        return graph.node("Add", whole, rest)

    def first(self, states: str, count: str) -> str:
        """Return the first `count` of states [1, more, width]."""
        return self.graph.node("Slice", states, self.graph.integers(0), count, self.graph.integers(1))

    def mix(self, query: str, key: str, value: str) -> str:
        """Return the attention of each window's states to each other."""
        graph = self.graph
        windows = [self.by_window(each) for each in (query, key, value)]
        attended = graph.node("Attention", *windows, self.mask, q_num_heads=self.heads, kv_num_heads=self.heads)
        return self.first(graph.node("Reshape", attended, graph.integers(1, -1, self.width)), self.count)

    def by_window(self, states: str) -> str:
        """Turn [1, states, width] into [windows, states of a window, width], zeros at the end."""
        graph = self.graph
        padded = pad_to_blocks(graph, states, self.count, self.span, axis=1)
        return graph.node(
            "Reshape", padded, graph.node("Concat", graph.integers(-1), self.span, graph.integers(self.width), axis=0)
        )

    def write_mask(self) -> str:
        """Return what is added to the scores [windows, 1, states of a window, states of a window]: padding is not seen."""
        graph, span = self.graph, self.span
        mask, windows = mask_padding(graph, self.count, span)
        return graph.node("Expand", mask, graph.node("Concat", windows, graph.integers(1), span, span, axis=0))


def build_encoder(arrays: Arrays, chunk: int, chunks: int, linear: Linear = float32_linear) -> GraphBuilder:
    """Return the graph described above; `chunk` and `chunks` are those of the writer."""
    return Qwen3AsrEncoderWriter(arrays, chunk, chunks, linear).build()
