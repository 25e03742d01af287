"""The adapter as one captured graph for each bucket of shapes: a launch instead of some thirty."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.adapter.forward import AdapterFrames, Operators, UtteranceFrames, adapt
from kernels.adapter.weights import AdapterWeights


@dataclass(frozen=True, order=True)
class Bucket:
    """Room for so many adapter frames in so many utterances."""

    frames: int
    utterances: int


@dataclass(frozen=True)
class Captured:
    """`replay` runs the captured work again and leaves its results in `output`, the same memory each time."""

    output: AdapterFrames
    replay: Callable[[], None]


class Capture(Protocol):
    def __call__(self, run: Callable[[], AdapterFrames]) -> Captured: ...


def cuda_graph_capture(run: Callable[[], AdapterFrames]) -> Captured:
    """Capture into a CUDA graph. Never run on a GPU yet.

    The first call compiles the kernels and must not be captured; it goes to a stream of its own, as CUDA graphs demand.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    return Captured(output, graph.replay)


@dataclass(frozen=True)
class Slot:
    """A bucket's own memory, and the work captured on it."""

    states: Tensor
    boundaries: Tensor
    captured: Captured


class GraphAdapter:
    """Batches of utterances through captured graphs. One thread at a time: a bucket's memory is used again by the next call."""

    def __init__(self, weights: AdapterWeights, operators: Operators, buckets: Sequence[Bucket], capture: Capture) -> None:
        """Captures every bucket, the largest first, so that the smaller ones find memory to reuse."""
        self._weights = weights
        self._buckets = sorted(buckets)
        self._slots = {bucket: self._make_slot(bucket, operators, capture) for bucket in reversed(self._buckets)}

    def __call__(self, states: Sequence[Tensor]) -> list[UtteranceFrames]:
        """Encoder states [states, encoder_width] of each utterance, each a multiple of the reduction; empty ones too."""
        reduction = self._weights.reduction
        if any(len(each) % reduction for each in states):
            raise ValueError(f"encoder states must come in multiples of {reduction}: {[len(each) for each in states]}")
        frames = [len(each) // reduction for each in states]
        slot = self._slots[self.bucket(sum(frames), len(frames))]
        boundaries = torch.full((len(slot.boundaries),), sum(frames), dtype=torch.int32)
        boundaries[0] = 0
        boundaries[1 : len(frames) + 1] = torch.tensor(frames, dtype=torch.int32).cumsum(0)
        slot.boundaries.copy_(boundaries)
        if sum(frames):
            torch.cat(list(states), out=slot.states[: sum(frames) * reduction])
        slot.captured.replay()
        return slot.captured.output.of_utterances(frames)

    def bucket(self, frames: int, utterances: int) -> Bucket:
        """The smallest that has room; a batch without one is refused."""
        for bucket in self._buckets:
            if frames <= bucket.frames and utterances <= bucket.utterances:
                return bucket
        raise ValueError(f"no bucket for {frames} frames in {utterances} utterances; the largest is {self._buckets[-1]}")

    def _make_slot(self, bucket: Bucket, operators: Operators, capture: Capture) -> Slot:
        weights, device = self._weights, self._weights.table.device
        shape = bucket.frames * weights.reduction, weights.encoder_width
        states = torch.zeros(shape, dtype=weights.dtype, device=device)
        boundaries = torch.zeros(bucket.utterances + 1, dtype=torch.int32, device=device)
        return Slot(states, boundaries, capture(lambda: adapt(weights, operators, states, boundaries)))
