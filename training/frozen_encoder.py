"""The frozen encoder of the trainer: that of a checkpoint, as it serves in float32."""

from pathlib import Path

from export.checkpoints.conversion import Conversion, PullOptions
from export.checkpoints.hub import Hub, Source
from export.pull import convert_encoder
from models.protocols import Float32
from models.registry import FEATURES, look_up
from models.runtimes.onnx.encoder import OnnxEncoder

FRAMES_PER_S = 12.5
"""Vectors that the LLM reads of a second of speech: a fourth of 50 states, as in arXiv 2310.00230."""


class FrozenEncoder:
    """Audio in, states [states, width] out, with the front end of its family. Its graph is written into a folder."""

    def __init__(self, source: Source, folder: Path, threads: int) -> None:
        """Raises `CheckpointError` for what `pull` refuses."""
        folder.mkdir(parents=True, exist_ok=True)
        conversion = Conversion(folder, source.checkpoint.name, PullOptions("fp32"), Hub(folder))
        self.section = convert_encoder(conversion, source.checkpoint)
        self.width = self.section.width
        self._features = look_up(FEATURES, self.section.features)(**self.section.feature_options())
        self._encoder = OnnxEncoder(folder / self.section.graph, threads)

    @property
    def reduction(self) -> int:
        """How many states make a frame of the adapter: 4 of 50 a second, 1 of 12.5."""
        return max(1, round(self.section.states_per_s / FRAMES_PER_S))

    def __call__(self, audio: Float32) -> Float32:
        (states,) = self._encoder.encode([self._features(audio)])
        result: Float32 = states
        return result
