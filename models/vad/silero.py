"""Silero's voice detector on ONNX Runtime."""

from pathlib import Path

import numpy as np

from models.bundle.sections import GraphValues, dimension
from models.protocols import Float32, VoiceState
from models.runtimes.onnx.session import open_session, tensor_shapes

SAMPLE_RATE_HZ = 16_000
CONTEXT_SAMPLES = 64
"""Samples of the window before that the graph takes in front of each window, at 16 kHz."""
STATE_WIDTH = 128


class OnnxVoiceDetector:
    """Implements `models.protocols.VoiceDetector`: one window a run, so that no probability depends on how the audio was cut."""

    def __init__(self, graph: Path, window_samples: int) -> None:
        self.window_samples = window_samples
        self._session = open_session(graph, threads=1)
        width = dimension(tensor_shapes(self._session), "input", 1)
        samples = width - CONTEXT_SAMPLES if isinstance(width, int) else width
        self.graph_values: GraphValues = {"window_samples": samples, "sample_rate_hz": SAMPLE_RATE_HZ}
        nothing = np.zeros((1, 1, STATE_WIDTH), np.float32)
        self._beginning = VoiceState((np.zeros(CONTEXT_SAMPLES, np.float32), nothing, nothing))

    def detect(self, audio: Float32, state: VoiceState | None) -> tuple[Float32, VoiceState]:
        context, hidden, cell = (state or self._beginning).content
        windows = audio.reshape(-1, self.window_samples)
        probabilities = np.empty(len(windows), np.float32)
        for index, window in enumerate(windows):
            inputs = {"input": np.concatenate((context, window))[None], "h": hidden, "c": cell}
            probability, hidden, cell = self._session.run(["speech_probs", "hn", "cn"], inputs)
            probabilities[index] = probability.item()
            context = window[-CONTEXT_SAMPLES:].copy()
        return probabilities, VoiceState((context, hidden, cell))
