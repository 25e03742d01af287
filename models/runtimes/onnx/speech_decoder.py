"""Decoders with a memory on ONNX Runtime: K/V slots as the LLM's, and the memory of each slot beside them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.graph.packed_attention import SPAN_STEP
from models.protocols import BackendError, Float32, PrefillRow
from models.runtimes.onnx.llm import NumpyKVCache, OnnxLLM
from models.runtimes.onnx.session import open_session, tensor_shapes


class CrossMemory:
    """Keys and values of the states that each slot attends to, all padded to the same `span`, without gaps between slots.

    So neighbouring slots are one array, whatever the span. A longer utterance widens the span, which moves the others. Slots are
    taken from the first on, so one that is written to slot 0 finds no others in use, and sets the span anew. Padding is zeros:
    what is masked still meets a product with 0.
    """

    def __init__(self, names: int, slots: int, max_states: int, width: int) -> None:
        self.span = 0
        self.lengths = np.zeros(slots, np.int64)
        self._width = width
        self.max_states = -(-max_states // SPAN_STEP) * SPAN_STEP
        # A page is taken when it is first written.
        self._arenas = np.zeros((names, slots * self.max_states * width), np.float32)

    def rows(self, name: int, first: int, count: int) -> Float32:
        """Return the memory of some slots [count, span, width] for one of the names, without a copy."""
        size = self.span * self._width
        return self._arenas[name, first * size : (first + count) * size].reshape(count, self.span, self._width)

    def require_room(self, states: int) -> None:
        """Raise `ValueError` unless a slot holds so many states."""
        if not 0 < states <= self.max_states:
            raise ValueError(f"{states} states, a slot holds 1 to {self.max_states}")

    def claim(self, slot: int, states: int) -> list[Float32]:
        """Return for every name where to write a slot's states [states, width]. Raises `ValueError` where there are too many."""
        self.require_room(states)
        span = -(-states // SPAN_STEP) * SPAN_STEP
        self.lengths[slot:] = 0
        if span > self.span or slot == 0:
            self._set_span(span)
        self.lengths[slot] = states
        places = [self.rows(name, slot, 1)[0] for name in range(len(self._arenas))]
        for place in places:
            place[states:] = 0
        return [place[:states] for place in places]

    def move(self, source: int, target: int) -> None:
        """Copy the states of one slot to another."""
        if self.span:
            for name in range(len(self._arenas)):
                self.rows(name, target, 1)[0] = self.rows(name, source, 1)[0]
        self.lengths[target] = self.lengths[source]

    def _set_span(self, span: int) -> None:
        used = [slot for slot, length in enumerate(self.lengths.tolist()) if length]
        kept = [(slot, [self.rows(name, slot, 1)[0].copy() for name in range(len(self._arenas))]) for slot in used]
        self.span = span
        for slot, arrays in kept:
            for name, array in enumerate(arrays):
                place = self.rows(name, slot, 1)[0]
                place[: len(array)] = array[:span]
                place[len(array) :] = 0


class CrossAttendingCache(NumpyKVCache):
    """The K/V slots of a decoder with a memory, which moves along."""

    def __init__(self, names: int, slots: int, slot_shape: Sequence[int], cross: CrossMemory) -> None:
        super().__init__(names, slots, slot_shape)
        self.cross = cross

    def move(self, source: int, target: int, length: int) -> None:
        super().move(source, target, length)
        self.cross.move(source, target)


class OnnxMemoryDecoder(OnnxLLM):
    """Implements `models.protocols.MemoryDecoder` for decoders with `models.graph.cross_attention`. Not thread-safe.

    `memory` is the graph that turns states into keys and values; everything else is as for `OnnxLLM`.
    """

    def __init__(self, graph: Path, memory: Path, embeddings: Path, *, max_states: int, slots: int = 8, threads: int = 2) -> None:
        super().__init__(graph, embeddings, slots=slots, threads=threads)
        self._memory_session = open_session(memory, threads)
        self.memory_shapes = tensor_shapes(self._memory_session)
        self._cross_names = [value.name for value in self._memory_session.get_outputs()]
        _, *slot_shape = self.shapes["key_0"]
        self._cross = CrossMemory(len(self._cross_names), slots, max_states, slot_shape[-1])
        self.cache = CrossAttendingCache(len(self._slot_names), slots, slot_shape, self._cross)
        self._bindings.clear()

    def write_memory(self, slot: int, states: Float32) -> None:
        """Write the keys and values of states [states, width] to a slot."""
        states = np.ascontiguousarray(states, np.float32)
        places = self._cross.claim(slot, len(states))
        binding = self._memory_session.io_binding()
        binding.bind_input("states", "cpu", 0, np.float32, states.shape, states.ctypes.data)
        for name, place in zip(self._cross_names, places, strict=True):
            binding.bind_output(name, "cpu", 0, np.float32, place.shape, place.ctypes.data)
        try:
            self._memory_session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
            raise BackendError(f"the decoder's memory failed on {len(states)} states: {error}") from error

    def _extra_inputs(self, rows: Sequence[PrefillRow]) -> dict[str, npt.NDArray[np.generic]]:
        first, count = rows[0].slot, len(rows)
        lengths = self._cross.lengths[first : first + count].copy()
        if not lengths.all():
            raise ValueError(f"slots {first} to {first + count - 1} have no memory to attend to")
        cross = {name: self._cross.rows(number, first, count) for number, name in enumerate(self._cross_names)}
        return {"memory_length": lengths, **cross}


class OnnxSpeechDecoder(OnnxMemoryDecoder):
    """Implements `models.protocols.SpeechDecoder` for the graphs of `models.speech_decoders.whisper`."""


class OnnxEncoderDecoder(OnnxMemoryDecoder):
    """Implements `models.protocols.EncoderDecoder` for the graphs of `models.llms.t5`."""

    def __init__(
        self,
        graph: Path,
        memory: Path,
        embeddings: Path,
        *,
        max_states: int,
        start_token: int,
        slots: int = 8,
        threads: int = 2,
    ) -> None:
        super().__init__(graph, memory, embeddings, max_states=max_states, slots=slots, threads=threads)
        self.max_states, self.start_token = max_states, start_token
