"""The adapter on our own kernels: batches of utterances without padding, each batch a captured graph."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.adapter.forward import AdapterFrames, UtteranceFrames
from kernels.adapter.graphs import Bucket, Graph, GraphAdapter
from kernels.adapter.weights import AdapterWeights, map_tensors, pack_adapter
from models.projectors.subsample import TrainedAdapter
from models.protocols import ProjectorOutput
from models.runtimes.cuda.device import Device, DeviceError, Stream, capture_launched, copy, upload
from models.runtimes.cuda.utterances import settling
from models.runtimes.onnx.projector import projector_output

BUCKET_FRAMES = (64, 128, 256)
"""Buckets below the one for the longest utterance. Padding costs little, but a bucket's frames decide how the kernels tile."""
TILE_FRAMES = 64
BATCH_FACTORS = (1, 2, 4)
"""How many of the longest utterances the other buckets take."""
FRAMES_PER_UTTERANCE = 16
"""A bucket has room for as many utterances as fill it at this length."""


def buckets_up_to(longest_frames: int) -> list[Bucket]:
    """Buckets for batches of utterances none of which is longer than `longest_frames`."""
    longest = math.ceil(longest_frames / TILE_FRAMES) * TILE_FRAMES
    sizes = [frames for frames in BUCKET_FRAMES if frames < longest] + [factor * longest for factor in BATCH_FACTORS]
    return [Bucket(frames, frames // FRAMES_PER_UTTERANCE) for frames in sizes]


class TritonAdapter:
    """The `Adapter` protocol over `device.operators`, for one thread; `stream` is the one that the states are computed on.

    A batch beyond the largest bucket is run in parts. Raises `DeviceError` for an utterance beyond it, and where a run fails.
    """

    def __init__(
        self, device: Device, stream: Stream, trained: TrainedAdapter, embedding: npt.NDArray[Any], buckets: Sequence[Bucket]
    ) -> None:
        """`embedding` is the LLM's table [vocabulary, embedding_size]. The buckets' graphs are captured here."""
        self.boundary_before = trained.boundary_before
        self.boundary_after = trained.boundary_after
        self._device = device
        self._stream = stream
        self._largest = max(buckets)
        packed = _pack(trained, embedding, device.float_type, self._largest.frames)
        weights = map_tensors(packed, lambda tensor: upload(device, tensor, stream))
        self._reduction = weights.reduction
        self._graphs = GraphAdapter(weights, device.operators, buckets, self._zeros, self._capture)
        most_utterances = max(bucket.utterances for bucket in buckets)
        self._staged_boundaries = device.staging((most_utterances + 1,), torch.int32)
        output = self._graphs.slot(self._largest.frames, self._largest.utterances).output
        self._staged_output = AdapterFrames(*(device.staging(each.shape, each.dtype) for each in output))

    def project(self, states: Sequence[Tensor]) -> list[ProjectorOutput]:
        frames = [self._frames(each) for each in states]
        results = []
        for first, last in self._batches(frames):
            results += [projector_output(**vars(each)) for each in self._run(states[first:last], frames[first:last])]
        return results

    def _frames(self, states: Tensor) -> int:
        frames, rest = divmod(len(states), self._reduction)
        if rest:
            raise ValueError(f"encoder states must come in multiples of {self._reduction}, not {len(states)}")
        if frames > self._largest.frames:
            raise DeviceError(f"The adapter takes at most {self._largest.frames} frames an utterance, not {frames}.")
        return frames

    def _batches(self, frames: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Neighbours together as far as the largest bucket takes them: from the first to before the last."""
        first = 0
        for last in range(1, len(frames) + 1):
            is_full = last - first == self._largest.utterances
            if last == len(frames) or is_full or sum(frames[first : last + 1]) > self._largest.frames:
                yield first, last
                first = last

    def _run(self, states: Sequence[Tensor], frames: Sequence[int]) -> list[UtteranceFrames]:
        edges = np.cumsum([0, *frames])
        slot = self._graphs.slot(int(edges[-1]), len(frames))
        # Utterances that are not there are empty ones at the end.
        boundaries = np.pad(edges, (0, slot.bucket.utterances - len(frames)), mode="edge")
        staged = self._staged_boundaries[: len(boundaries)]
        staged.numpy()[...] = boundaries
        # One even of an empty batch, for the number of kept frames.
        rows = max(1, int(edges[-1]))
        with settling(self._stream):
            copy(self._device, slot.boundaries, staged, self._stream)
            for each, edge in zip(states, (edges * self._reduction).tolist(), strict=False):
                copy(self._device, slot.states[edge : edge + len(each)], each, self._stream)
            slot.graph.replay()
            for target, source in zip(self._staged_output, slot.output, strict=True):
                copy(self._device, target[:rows], source[:rows], self._stream)
        return self._staged_output.of_utterances(frames)

    def _zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        memory = self._device.empty(shape, dtype)

        def work() -> None:
            memory.zero_()

        self._device.launch(work, self._stream)
        return memory

    def _capture(self, work: Callable[[], AdapterFrames]) -> tuple[AdapterFrames, Graph]:
        return capture_launched(self._device, work, self._stream)


def _pack(trained: TrainedAdapter, embedding: npt.NDArray[Any], float_type: torch.dtype, max_frames: int) -> AdapterWeights:
    weights = {name: torch.from_numpy(array) for name, array in trained.weights.items()}
    table = torch.from_numpy(np.array(embedding))
    return pack_adapter(weights, trained.config, table, float_type, float_type, max_frames)
