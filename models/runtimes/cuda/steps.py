"""One run of the LLM's plan after the other: their inputs in one copy to the GPU, their logits in one copy back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.protocols import Float32, Int64
from models.runtimes.cuda.device import Device, Graph, Stream, copy
from models.runtimes.cuda.gpu import aligned
from models.runtimes.cuda.plan import PlanContext
from models.runtimes.cuda.slots import SlotMemory

INPUTS = {
    "embeddings": torch.float32,
    "positions": torch.int64,
    "write_index": torch.int64,
    "kv_length": torch.int64,
    "wanted": torch.int64,
}
"""Of `models.llms.llama`, beside the slots."""


@dataclass(frozen=True, order=True)
class StepShape:
    """The size of a step: its rows, the new positions of each, and the positions of all whose logits are wanted."""

    rows: int
    tokens: int
    wanted: int

    def of_input(self, name: str, embedding_size: int) -> tuple[int, ...]:
        return {
            "embeddings": (self.rows, self.tokens, embedding_size),
            "positions": (self.rows, self.tokens),
            "write_index": (self.rows,),
            "kv_length": (self.rows,),
            "wanted": (self.wanted, 2),
        }[name]


def all_places(shape: StepShape) -> Int64:
    """(row, token) [rows * tokens, 2] of every position of a step."""
    return np.stack(np.meshgrid(np.arange(shape.rows), np.arange(shape.tokens), indexing="ij"), axis=-1).reshape(-1, 2)


@dataclass(frozen=True)
class StepInputs:
    """The inputs of a step: embeddings [rows, tokens, D], of each row the position where it begins, which positions its
    attention may see, and (row, token) [wanted, 2] of each position whose logits are wanted.
    """

    embeddings: Float32
    positions: Int64
    write_index: Int64
    kv_length: Int64
    wanted: Int64

    @property
    def shape(self) -> StepShape:
        rows, tokens, _ = self.embeddings.shape
        return StepShape(rows, tokens, len(self.wanted))


class StepMemory:
    """Memory for one step at a time, on the GPU and beside it pinned on the host. Every shape begins at its first byte."""

    def __init__(
        self, device: Device, stream: Stream, embedding_size: int, vocabulary_size: int, shapes: Sequence[StepShape]
    ) -> None:
        """Room for each of the `shapes` and all that are no larger."""
        self.device = device
        self.stream = stream
        self._embedding_size = embedding_size
        size = max(self._layout(shape)[1] for shape in shapes)
        self._inputs, self._staged_inputs = device.empty((size,), torch.uint8), device.staging((size,), torch.uint8)
        logits = max(shape.wanted for shape in shapes), vocabulary_size
        self._logits, self._staged_logits = device.empty(logits, torch.float32), device.staging(logits, torch.float32)

    def bindings(self, shape: StepShape) -> dict[str, Tensor]:
        """Return a plan's inputs and `logits` on the GPU."""
        return {**self._views(self._inputs, shape), "logits": self._logits[: shape.wanted]}

    def stage(self, inputs: StepInputs) -> None:
        """Put the inputs where `upload` takes them from. The stream has to be done with the step before."""
        for name, view in self._views(self._staged_inputs, inputs.shape).items():
            view.numpy()[...] = getattr(inputs, name)

    def upload(self, shape: StepShape) -> None:
        _, size = self._layout(shape)
        copy(self.device, self._inputs[:size], self._staged_inputs[:size], self.stream)

    def download(self, shape: StepShape) -> None:
        copy(self.device, self._staged_logits[: shape.wanted], self._logits[: shape.wanted], self.stream)

    def take_logits(self, shape: StepShape) -> Float32:
        """Return the logits [wanted, V] that were downloaded, once the stream was synchronised."""
        logits: npt.NDArray[np.float32] = self._staged_logits[: shape.wanted].numpy().copy()
        return logits

    def _views(self, memory: Tensor, shape: StepShape) -> dict[str, Tensor]:
        offsets, _ = self._layout(shape)
        views = {}
        for name, dtype in INPUTS.items():
            size = torch.Size(shape.of_input(name, self._embedding_size))
            begin = offsets[name]
            views[name] = memory[begin : begin + size.numel() * dtype.itemsize].view(dtype).view(size)
        return views

    def _layout(self, shape: StepShape) -> tuple[dict[str, int], int]:
        """Return the offset of each input, and of the end of the last one, in bytes."""
        offsets, end = {}, 0
        for name, dtype in INPUTS.items():
            offsets[name] = end = aligned(end)
            end += torch.Size(shape.of_input(name, self._embedding_size)).numel() * dtype.itemsize
        return offsets, end


class Step:
    """Runs of one shape over the slots from `first_slot` on: upload, plan, download."""

    def __init__(self, context: PlanContext, memory: StepMemory, slots: SlotMemory, shape: StepShape, first_slot: int) -> None:
        self._context = context
        self._memory = memory
        self._shape = shape
        context.bind({**memory.bindings(shape), **slots.bindings(first_slot, shape.rows)})

    def enqueue(self) -> None:
        self._memory.upload(self._shape)
        self._context.enqueue()
        self._memory.download(self._shape)

    def capture(self) -> "CapturedStep":
        """Return a graph of the step, which runs once before: while a graph is captured, nothing may be set up."""
        self.enqueue()
        self._memory.stream.synchronize()

        def work() -> list[Tensor]:
            self.enqueue()
            return []

        _, graph = self._memory.device.capture(work, self._memory.stream)
        return CapturedStep(self, graph, self._shape)


@dataclass(frozen=True)
class CapturedStep:
    """A step's graph. The step's context has to live as long as the graph is replayed."""

    step: Step
    graph: Graph
    shape: StepShape
