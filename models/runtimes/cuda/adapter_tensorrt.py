"""The adapter on TensorRT: every frame is scored, and the reader drops the blanks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.projectors.subsample import TrainedAdapter
from models.protocols import ProjectorOutput
from models.runtimes.cuda.device import DeviceError, Stream, copy
from models.runtimes.cuda.plan import Plan, PlanContext
from models.runtimes.cuda.utterances import LANES, settling
from models.runtimes.onnx.projector import frame_embeddings, projector_output

OUTPUTS = ("blank_probability", "top_tokens", "top_probabilities", "residual")


class TensorRtAdapter:
    """The `Adapter` protocol, for plans of `export.tensorrt_speech`: one utterance a run. For one thread.

    Raises `DeviceError` for an utterance that is longer than the plan takes, and where a run fails.
    """

    def __init__(self, plan: Plan, stream: Stream, trained: TrainedAdapter, embedding: npt.NDArray[Any]) -> None:
        """`stream` is the one that the states are computed on, `embedding` the LLM's table [vocabulary, embedding_size].

        Raises `PlanError` where the plan is not an adapter's.
        """
        plan.require({"states"}, set(OUTPUTS), profiles=1)
        self.boundary_before = trained.boundary_before
        self.boundary_after = trained.boundary_after
        self._device = plan.device
        self._stream = stream
        self._embedding = embedding
        self._reduction: int = trained.config["reduction"]
        self._blank_threshold = np.float32(trained.config["blank_threshold"])
        self._largest_states, _ = plan.inputs["states"].largest[0]
        self._context = PlanContext(plan, 0, stream, plan.workspace())
        frames = self._largest_states // self._reduction
        shapes = {name: ((frames, *plan.outputs[name].shape[1:]), plan.outputs[name].dtype) for name in OUTPUTS}
        self._outputs = {name: plan.device.empty(*shape) for name, shape in shapes.items()}
        self._lanes = [{name: plan.device.staging(*shape) for name, shape in shapes.items()} for _ in range(LANES)]

    def project(self, states: Sequence[Tensor]) -> list[ProjectorOutput]:
        for each in states:
            self._check(each)
        results = []
        for first in range(0, len(states), LANES):
            batch = states[first : first + LANES]
            with settling(self._stream):
                for each, lane in zip(batch, self._lanes, strict=False):
                    self._enqueue(each, lane)
            results += [self._read(len(each) // self._reduction, lane) for each, lane in zip(batch, self._lanes, strict=False)]
        return results

    def _check(self, states: Tensor) -> None:
        if len(states) % self._reduction:
            raise ValueError(f"encoder states must come in multiples of {self._reduction}, not {len(states)}")
        if len(states) > self._largest_states:
            raise DeviceError(f"The adapter's plan takes at most {self._largest_states} states an utterance, not {len(states)}.")

    def _enqueue(self, states: Tensor, lane: dict[str, Tensor]) -> None:
        frames = len(states) // self._reduction
        if not frames:
            return
        outputs = {name: memory[:frames] for name, memory in self._outputs.items()}
        self._context.bind({"states": states, **outputs})
        self._context.enqueue()
        for name, output in outputs.items():
            copy(self._device, lane[name][:frames], output, self._stream)

    def _read(self, frames: int, lane: dict[str, Tensor]) -> ProjectorOutput:
        blank, tokens, probabilities, residual = (lane[name][:frames].numpy() for name in OUTPUTS)
        kept = np.flatnonzero(blank < self._blank_threshold).astype(np.int64)
        tokens, probabilities = tokens[kept].astype(np.int64), probabilities[kept]
        embeddings = frame_embeddings(self._embedding, tokens, probabilities, residual[kept])
        return projector_output(blank.copy(), kept, tokens, probabilities, embeddings)
