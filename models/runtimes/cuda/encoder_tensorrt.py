"""The speech encoder on TensorRT."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.protocols import Float32
from models.runtimes.cuda.device import Stream
from models.runtimes.cuda.plan import Plan, PlanContext
from models.runtimes.cuda.utterances import FRAMES_PER_STATE, UtteranceLanes


class TensorRtEncoder:
    """The `Encoder` protocol, for plans of `export.tensorrt_speech`: one utterance a run, whose states [states, width] float32
    stay on the device. For one thread.

    Raises `DeviceError` for audio that is longer, or shorter, than the plan takes, and where a run fails.
    """

    def __init__(self, plan: Plan, stream: Stream) -> None:
        """Raises `PlanError` where the plan is not an encoder's."""
        plan.require({"features"}, {"states"}, profiles=1)
        features = plan.inputs["features"]
        self._device = plan.device
        self._width = plan.outputs["states"].shape[-1]
        self._context = PlanContext(plan, 0, stream, plan.workspace())
        mel_bins, smallest = features.smallest[0]
        _, largest = features.largest[0]
        self._lanes = UtteranceLanes(plan.device, stream, mel_bins, smallest, largest)
        # Kernels are loaded at their first run.
        self.encode([np.zeros((mel_bins, largest), np.float32)])

    def encode(self, features: Sequence[Float32]) -> list[Tensor]:
        return self._lanes.run(features, self._enqueue)

    def _enqueue(self, features: Tensor) -> Tensor:
        states = self._device.empty((-(-features.shape[1] // FRAMES_PER_STATE), self._width), torch.float32)
        self._context.bind({"features": features, "states": states})
        self._context.enqueue()
        return states
