"""The LLM's key/value slots in a GPU's memory, which a plan updates in place."""

import torch
from torch import Tensor

from models.bundle.plans import PlanError
from models.protocols import SlotState
from models.runtimes.cuda.device import Device, OutOfDeviceMemoryError, Stream, copy
from models.runtimes.cuda.gpu import ALIGNMENT_BYTES
from models.runtimes.cuda.plan import Plan


class SlotMemory:
    """Implements `models.protocols.KVCache` for a plan's `key_i` and `value_i`, zero at first; all work is put on one stream."""

    def __init__(self, device: Device, stream: Stream, plan: Plan, slots: int) -> None:
        """Raises `OutOfDeviceMemoryError` where they do not fit, and says how many would."""
        self._device = device
        self._stream = stream
        self._names = [name for name in plan.inputs if name.startswith(("key_", "value_"))]
        description = plan.inputs[self._names[0]]
        slot_shape = description.shape[1:]
        # Zeros, because attention multiplies what it masks by 0, and 0 * NaN is NaN.
        one_bytes = description.dtype.itemsize * torch.Size(slot_shape).numel()
        if one_bytes % ALIGNMENT_BYTES:
            raise PlanError(
                f"The plan {plan.name} has slots of {one_bytes} bytes, and memory is bound in steps of {ALIGNMENT_BYTES}."
            )
        slot_bytes, free = one_bytes * len(self._names), device.free_memory_bytes()
        if slots * slot_bytes > free:
            raise OutOfDeviceMemoryError(
                f"{slots} slots of {slot_shape[-2]} positions take {slots * slot_bytes / 1e9:.2f} GB and {free / 1e9:.2f} GB "
                f"of the GPU's memory are free: {free // slot_bytes} would fit, set --slots"
            )
        self.memory = device.empty((len(self._names), slots, *slot_shape), description.dtype)
        self.clear()

    def bindings(self, first_slot: int, count: int) -> dict[str, Tensor]:
        """Inputs and outputs for a step whose row i is slot `first_slot` + i: one memory under both names."""
        bound = {}
        for name, memory in zip(self._names, self.memory, strict=True):
            kind, layer = name.split("_")
            bound[name] = bound[f"{kind}_out_{layer}"] = memory[first_slot : first_slot + count]
        return bound

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        copy(self._device, self._first(target, length), self._first(source, length), self._stream)

    def read(self, slot: int, length: int) -> SlotState:
        """Return a copy of the first `length` positions, in the GPU's memory."""
        first = self._first(slot, length)
        content = self._device.empty(first.shape, first.dtype)
        copy(self._device, content, first, self._stream)
        self._stream.synchronize()
        return SlotState(length, content.nbytes, content)

    def write(self, slot: int, state: SlotState) -> None:
        copy(self._device, self._first(slot, state.length), state.content, self._stream)
        # The copy may be dropped as soon as this returns.
        self._stream.synchronize()

    def clear(self) -> None:
        """Zero all slots."""
        self._device.launch(lambda: _zero(self.memory), self._stream)

    def clear_slot(self, slot: int) -> None:
        """Zero one slot."""
        self._device.launch(lambda: _zero(self.memory[:, slot]), self._stream)

    def _first(self, slot: int, length: int) -> Tensor:
        return self.memory[:, slot, :, :length]


def _zero(memory: Tensor) -> None:
    memory.zero_()
