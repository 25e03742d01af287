"""Decoders on ONNX Runtime: one session, and K/V slots in numpy memory that the graph updates in place.

The LLM attends to its own positions only; a speech decoder, and an LLM with an encoder, to a memory of states too.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.graph.packed_attention import SPAN_STEP
from models.protocols import BackendError, DecodeRow, Float32, PrefillRow, SlotState
from models.runtimes.onnx.session import open_session, tensor_shapes

MAX_PADDING = 64
"""Positions of padding up to which rows share a run. Only the attention computes them, and this many cost less than a run."""


class EmbeddingTable:
    """A `.npy` file [vocabulary_size, embedding_size] in float16 or float32."""

    def __init__(self, file: Path, vocabulary_size: int, embedding_size: int) -> None:
        """Raises `BackendError` where the file cannot be loaded or has another shape."""
        try:
            self._table = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise BackendError(f"{file.name} could not be loaded: {error}") from error
        if self._table.shape != (vocabulary_size, embedding_size):
            raise BackendError(
                f"{file.name} has the shape {self._table.shape}, and the LLM takes {(vocabulary_size, embedding_size)}"
            )

    def rows(self, tokens: Sequence[int]) -> Float32:
        """Return the embeddings [tokens, embedding_size] of token ids."""
        rows: Float32 = self._table[np.asarray(tokens, np.int64)].astype(np.float32)
        return rows


class NumpyKVCache:
    """Implements `models.protocols.KVCache`: all layers' keys and values, `memory` [names, slots, ..., max_positions, width]."""

    def __init__(self, names: int, slots: int, slot_shape: Sequence[int]) -> None:
        # Zeros, because attention multiplies what it masks by 0, and 0 * NaN is NaN.
        self.memory = np.zeros((names, slots, *slot_shape), np.float32)

    def move(self, source: int, target: int, length: int) -> None:
        self.memory[:, target, ..., :length, :] = self.memory[:, source, ..., :length, :]

    def read(self, slot: int, length: int) -> SlotState:
        content = self.memory[:, slot, ..., :length, :].copy()
        return SlotState(length, content.nbytes, content)

    def write(self, slot: int, state: SlotState) -> None:
        self.memory[:, slot, ..., : state.length, :] = state.content


class OnnxLLM:
    """Implements `models.protocols.LLM` for the decoder graphs of `models.llms.llama`. Not thread-safe.

    `graph` is the ONNX file and `embeddings` the input embedding table as `.npy` [vocabulary, D] in float16 or float32. Only the
    embeddings in use are read into memory, and a page of slot memory is taken when it is first written. The contract's equal
    bits hold for `ExactAttention` with 8-bit products; with float32 products, or `StandardAttention`, a row alone differs in its
    last bits. Raises `BackendError` where the files cannot be loaded or do not fit together.
    """

    def __init__(self, graph: Path, embeddings: Path, *, slots: int = 8, threads: int = 2) -> None:
        self._session = open_session(graph, threads)
        self.shapes = shapes = tensor_shapes(self._session)
        self._slot_names = [name for name in shapes if name.startswith(("key_", "value_")) and "_out_" not in name]
        self._packs_rows = "places" in shapes
        _, *slot_shape = shapes["key_0"]
        self.slots = slots
        self.max_positions: int = slot_shape[-2]
        self.embedding_size: int = shapes["embeddings"][-1]
        self.vocabulary_size: int = shapes["logits"][-1]
        self._embeddings = EmbeddingTable(embeddings, self.vocabulary_size, self.embedding_size)
        self.cache: NumpyKVCache = NumpyKVCache(len(self._slot_names), slots, slot_shape)
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    def with_slots(self, slots: int) -> "OnnxLLM":
        """Return the same LLM over slots of its own, which another thread may use."""
        other = copy.copy(self)
        other.slots, other._bindings = slots, {}
        other.cache = NumpyKVCache(len(self._slot_names), slots, self.shapes["key_0"][1:])
        return other

    def embed(self, tokens: Sequence[int]) -> Float32:
        """Return the embeddings [tokens, embedding_size] of token ids."""
        return self._embeddings.rows(tokens)

    def prefill(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        """Append each row's embeddings to its slot; return per row the logits [wanted, V] of its last positions."""
        return [logits for batch in self._batches(rows) for logits in self._run(batch)]

    def decode(self, rows: Sequence[DecodeRow]) -> list[Float32]:
        """Append each row's tokens to slots 0..n-1, which `rows` must cover in that order; return logits [tokens, V] per row."""
        if [row.slot for row in rows] != list(range(len(rows))):
            raise ValueError(f"decode rows must be slots 0..{len(rows) - 1} in order")
        return self.prefill([PrefillRow(row.slot, row.position, self.embed(row.tokens), len(row.tokens)) for row in rows])

    def _batches(self, rows: Sequence[PrefillRow]) -> Iterator[list[PrefillRow]]:
        """Yield rows in neighbouring slots together, as long as that adds little padding and each slot has room for its own."""
        batch: list[PrefillRow] = []
        for row in rows:
            grown = [*batch, row]
            longest = max(len(each.embeddings) for each in grown)
            fits = all(each.position + longest <= self.max_positions for each in grown)
            padding = longest * len(grown) - sum(len(each.embeddings) for each in grown)
            if batch and not (row.slot == batch[-1].slot + 1 and fits and padding <= MAX_PADDING):
                yield batch
                grown = [row]
            batch = grown
        if batch:
            yield batch

    def _run(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        """Run rows of neighbouring slots in one pass; return the logits [wanted, V] of each."""
        first_slot = rows[0].slot
        lengths, write_index = (
            np.array(numbers, np.int64) for numbers in ([len(row.embeddings) for row in rows], [row.position for row in rows])
        )
        tokens = int(lengths.max())
        end = int(write_index.max()) + tokens
        if first_slot < 0 or first_slot + len(rows) > self.slots or write_index.min() < 0 or lengths.min() == 0:
            raise ValueError(f"{lengths} tokens for slots from {first_slot}, position {write_index.min()}: out of range")
        if end > self.max_positions:
            raise ValueError(f"position {end - 1} is beyond the slot's {self.max_positions} positions")
        ends = lengths.cumsum()
        step = np.arange(tokens)
        # A row is padded with its own last position: what padding leaves in the slots must be finite.
        places = (ends - lengths)[:, None] + np.minimum(step, lengths[:, None] - 1)
        kept = np.flatnonzero(step < lengths[:, None])
        wanted = np.concatenate([np.arange(end - row.wanted, end) for row, end in zip(rows, ends.tolist(), strict=True)])
        embeddings = np.concatenate([row.embeddings for row in rows])
        inputs: dict[str, npt.NDArray[np.generic]] = {"positions": write_index[:, None] + step, "write_index": write_index}
        if self._packs_rows:
            span = np.array([-(-end // SPAN_STEP) * SPAN_STEP])
            inputs |= {"embeddings": embeddings, "places": places, "kept": kept, "wanted": wanted[:, None], "span": span}
        else:
            by_row = np.stack(np.divmod(kept[wanted], tokens), axis=1)
            inputs |= {"embeddings": embeddings[places], "wanted": by_row, "kv_length": write_index + tokens}
        inputs |= self._extra_inputs(rows)
        logits = np.empty((len(wanted), self.vocabulary_size), np.float32)
        binding = self._slot_binding(first_slot, len(rows))
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
            raise BackendError(f"the LLM failed on {len(rows)} rows of up to {tokens} positions: {error}") from error
        split = np.split(logits, np.cumsum([row.wanted for row in rows[:-1]], dtype=np.int64))
        for row, row_logits in zip(rows, split, strict=True):
            self._clear_if_poisoned(row.slot, row.position, tokens, row_logits)
        return split

    def _extra_inputs(self, rows: Sequence[PrefillRow]) -> dict[str, npt.NDArray[np.generic]]:  # noqa: ARG002 - for subclasses
        """Return what the graph reads beside the positions of `rows` and their slots."""
        return {}

    def _clear_if_poisoned(self, slot: int, position: int, tokens: int, logits: Float32) -> None:
        """Zero a slot in which NaN or infinity came up: the mask would not keep it from the slot's next request.

        A value that is not finite in any layer makes the last layer's keys and values, or the logits, not finite either.
        """
        last_layer = self.cache.memory[-2:, slot, ..., position : position + tokens, :]
        if not (np.isfinite(logits).all() and np.isfinite(last_layer).all()):
            self.cache.memory[:, slot, ..., : position + tokens, :] = 0

    def _slot_binding(self, first_slot: int, count: int) -> onnxruntime.IOBinding:
        """Return a binding with the memory of `count` slots as inputs and outputs: row i of a run is slot first_slot + i."""
        if (first_slot, count) not in self._bindings:
            binding = self._session.io_binding()
            for name, memory in zip(self._slot_names, self.cache.memory, strict=True):
                rows = memory[first_slot : first_slot + count]
                kind, layer = name.split("_")
                binding.bind_input(name, "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
                binding.bind_output(f"{kind}_out_{layer}", "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
            self._bindings[first_slot, count] = binding
        return self._bindings[first_slot, count]


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
        """Raise `ValueError` unless a slot has room for `states` states."""
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
