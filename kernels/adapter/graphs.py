"""The adapter as one captured graph for each bucket of shapes: a launch instead of some thirty."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.adapter.forward import AdapterFrames, Operators, adapt
from kernels.adapter.weights import AdapterWeights


@dataclass(frozen=True, order=True)
class Bucket:
    """Room for so many adapter frames in so many utterances."""

    frames: int
    utterances: int


class Graph(Protocol):
    def replay(self) -> None:
        """Enqueue the captured work again."""
        ...


class Zeros(Protocol):
    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros on the device of the weights."""
        ...


class Capture(Protocol):
    def __call__(self, work: Callable[[], AdapterFrames]) -> tuple[AdapterFrames, Graph]:
        """Return the results of `work` and a graph of it. The results stay in the same memory; each replay writes them anew."""
        ...


@dataclass(frozen=True)
class Slot:
    """A bucket's own memory, and the work captured on it.

    A replay reads `states` [bucket.frames * reduction, encoder_width] and `boundaries` [bucket.utterances + 1] as
    `kernels.adapter.forward.adapt` does, and writes `output`.
    """

    bucket: Bucket
    states: Tensor
    boundaries: Tensor
    output: AdapterFrames
    graph: Graph


class GraphAdapter:
    """A slot for each bucket. A caller fills one, replays it and reads its output on the stream that it was captured on."""

    def __init__(
        self, weights: AdapterWeights, operators: Operators, buckets: Sequence[Bucket], zeros: Zeros, capture: Capture
    ) -> None:
        """Capture every bucket, the largest first, so that the smaller ones find memory to reuse."""
        self._weights, self._operators = weights, operators
        self.slots = sorted(
            (self._make_slot(bucket, zeros, capture) for bucket in sorted(buckets, reverse=True)), key=lambda slot: slot.bucket
        )

    def slot(self, frames: int, utterances: int) -> Slot:
        """Return the smallest slot that has room. Raises `ValueError` where there is none."""
        for slot in self.slots:
            if frames <= slot.bucket.frames and utterances <= slot.bucket.utterances:
                return slot
        raise ValueError(f"no bucket for {frames} frames in {utterances} utterances; the largest is {self.slots[-1].bucket}")

    def _make_slot(self, bucket: Bucket, zeros: Zeros, capture: Capture) -> Slot:
        weights, operators = self._weights, self._operators
        states = zeros((bucket.frames * weights.reduction, weights.encoder_width), weights.dtype)
        boundaries = zeros((bucket.utterances + 1,), torch.int32)
        output, graph = capture(lambda: adapt(weights, operators, states, boundaries))
        return Slot(bucket, states, boundaries, output, graph)
