"""Run steps of the LLM's plan over slots of their own, each with and without a captured graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch

from models.bundle.plans import DECODE_PROFILE, PREFILL_PROFILE
from models.protocols import Float32, Int64
from models.runtimes.cuda.device import Device
from models.runtimes.cuda.plan import Plan, PlanContext
from models.runtimes.cuda.slots import SlotMemory
from models.runtimes.cuda.steps import CapturedStep, Step, StepInputs, StepMemory, StepShape, all_places


@dataclass(frozen=True)
class Rigged:
    """A step of one shape, and a captured one of the same shape."""

    shape: StepShape
    step: Step
    captured: CapturedStep


@dataclass(frozen=True)
class Played:
    """Logits [wanted, V] of each step, and a digest of all slots after the last."""

    logits: list[Float32]
    slots: str


class StepRig:
    """A second set of slots beside those of `TensorRtLLM`, and steps over it. For one thread."""

    def __init__(self, device: Device, plan: Plan, slots: int, shapes: Sequence[StepShape]) -> None:
        """Capture a graph for each of the shapes; steps of one position a row run under the decode profile."""
        self.stream = device.stream()
        self.embedding_size = plan.inputs["embeddings"].shape[-1]
        self._plan = plan
        self._slots = SlotMemory(device, self.stream, plan, slots)
        self._memory = StepMemory(device, self.stream, self.embedding_size, plan.outputs["logits"].shape[-1], shapes)
        self._workspace = plan.workspace()
        self.rigged = [self._rig(shape) for shape in shapes]

    def stage(self, inputs: StepInputs) -> None:
        """Set the inputs of the next step."""
        self._memory.stage(inputs)

    def play(self, rigged: Rigged, all_inputs: Sequence[StepInputs], *, captured: bool) -> Played:
        """Run one step for each of the inputs, from empty slots on."""
        self._slots.clear()
        logits = []
        for inputs in all_inputs:
            self.stage(inputs)
            if captured:
                rigged.captured.graph.replay()
            else:
                rigged.step.enqueue()
            self.stream.synchronize()
            logits.append(self._memory.take_logits(rigged.shape))
        return Played(logits, sha256(self._slots.memory.cpu().view(torch.uint8).numpy().tobytes()).hexdigest())

    def _rig(self, shape: StepShape) -> Rigged:
        self.stage(random_inputs(shape, self.embedding_size, np.zeros(shape.rows, np.int64), seed=0))
        # A context that was captured from is not bound again, so each has its own.
        return Rigged(shape, self._step(shape), self._step(shape).capture())

    def _step(self, shape: StepShape) -> Step:
        profile = DECODE_PROFILE if shape.tokens == 1 else PREFILL_PROFILE
        context = PlanContext(self._plan, profile, self.stream, self._workspace)
        return Step(context, self._memory, self._slots, shape, first_slot=0)


def random_inputs(shape: StepShape, embedding_size: int, starts: Int64, seed: int) -> StepInputs:
    """Return embeddings of noise for rows that begin at `starts` [rows]; logits of the first `shape.wanted` positions."""
    noise = np.random.default_rng(seed).standard_normal((shape.rows, shape.tokens, embedding_size), np.float32)
    return StepInputs(
        noise / np.float32(10),
        positions=starts[:, None] + np.arange(shape.tokens),
        write_index=starts,
        kv_length=starts + shape.tokens,
        wanted=all_places(shape)[: shape.wanted],
    )
