"""The LLM on ONNX Runtime: one session, and key/value slots in numpy memory that the graph updates in place."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.llms.llama import SPAN_STEP
from models.protocols import BackendError, DecodeRow, Float32, Int64, PrefillRow, SlotState
from models.runtimes.onnx.embedding_table import EmbeddingTable
from models.runtimes.onnx.padding import pad_rows, split_by_row, wanted_places
from models.runtimes.onnx.session import open_session, tensor_shapes

# Rows are prefilled together where that computes at most this many times their positions.
MAX_PADDING = 1.25


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

    `graph` is the ONNX file, `embeddings` the input embedding table as `.npy` [vocabulary, D] in float16 or float32, of
    which only the rows in use are read into memory. Slot memory likewise: a page is taken when it is first written.
    The contract's equal bits hold for `ExactAttention` with 8-bit products; with float32 products, or `StandardAttention`,
    a row alone differs in its last bits. Raises `BackendError` where the files cannot be loaded or do not fit together.
    """

    def __init__(self, graph: Path, embeddings: Path, *, slots: int = 8, threads: int = 2) -> None:
        self._session = open_session(graph, threads)
        self.shapes = shapes = tensor_shapes(self._session)
        self._slot_names = [name for name in shapes if name.startswith(("key_", "value_")) and "_out_" not in name]
        self._takes_span = "span" in shapes
        _, *slot_shape = shapes["key_0"]
        self.slots = slots
        self.max_positions: int = slot_shape[-2]
        self.embedding_size: int = shapes["embeddings"][-1]
        self.vocabulary_size: int = shapes["logits"][-1]
        self._embeddings = EmbeddingTable(embeddings, self.vocabulary_size, self.embedding_size)
        self.cache = NumpyKVCache(len(self._slot_names), slots, slot_shape)
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    def embed(self, tokens: Sequence[int]) -> Float32:
        """Embeddings [tokens, embedding_size] of token ids."""
        return self._embeddings.rows(tokens)

    def prefill(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        """Append each row's embeddings to its slot; per row, logits [wanted, vocabulary_size] of its last positions."""
        return [logits for batch in self._prefill_batches(rows) for logits in self._prefill_batch(batch)]

    def _prefill_batches(self, rows: Sequence[PrefillRow]) -> Iterator[list[PrefillRow]]:
        """Neighbours in neighbouring slots together, as long as that adds little padding: a run costs time of its own."""
        batch: list[PrefillRow] = []
        for row in rows:
            grown = [*batch, row]
            longest = max(len(each.embeddings) for each in grown)
            fits = all(each.position + longest <= self.max_positions for each in grown)
            padded = longest * len(grown) <= MAX_PADDING * sum(len(each.embeddings) for each in grown)
            if batch and not (row.slot == batch[-1].slot + 1 and fits and padded):
                yield batch
                grown = [row]
            batch = grown
        if batch:
            yield batch

    def _prefill_batch(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        padded = pad_rows(rows, max(len(row.embeddings) for row in rows))
        positions = np.array([row.position for row in rows], np.int64)
        return split_by_row(self._run(rows[0].slot, padded, positions, wanted_places(rows)), rows)

    def decode(self, rows: Sequence[DecodeRow]) -> list[Float32]:
        """Append each row's tokens to slots 0..n-1, which `rows` must cover in that order; logits [tokens, V] per row."""
        if [row.slot for row in rows] != list(range(len(rows))):
            raise ValueError(f"decode rows must be slots 0..{len(rows) - 1} in order")
        if not rows:
            return []
        longest = max(len(row.tokens) for row in rows)
        if any(row.position + longest > self.max_positions for row in rows):  # no room for padding in some slot
            return self.prefill([PrefillRow(r.slot, r.position, self.embed(r.tokens), len(r.tokens)) for r in rows])
        # Padded with true tokens: what padding leaves in the slots must be finite.
        padded = [token for row in rows for token in [*row.tokens, *[row.tokens[-1]] * (longest - len(row.tokens))]]
        wanted = np.array([(index, token) for index, row in enumerate(rows) for token in range(len(row.tokens))], np.int64)
        embeddings = self.embed(padded).reshape(len(rows), longest, -1)
        logits = self._run(0, embeddings, np.array([row.position for row in rows], np.int64), wanted)
        return np.split(logits, np.cumsum([len(row.tokens) for row in rows[:-1]]))

    def _run(self, first_slot: int, embeddings: Float32, write_index: Int64, wanted: Int64) -> Float32:
        """Run embeddings [rows, tokens, D] over the slots from `first_slot` on; logits [N, V] of `wanted` [N, 2]."""
        count, tokens, _ = embeddings.shape
        end = int(write_index.max()) + tokens
        if first_slot < 0 or first_slot + count > self.slots or write_index.min() < 0 or tokens == 0:
            raise ValueError(f"{tokens} tokens for {count} slots from {first_slot}, position {write_index.min()}: out of range")
        if end > self.max_positions:
            raise ValueError(f"position {end - 1} is beyond the slot's {self.max_positions} positions")
        inputs: dict[str, npt.NDArray[np.generic]] = {
            "embeddings": np.ascontiguousarray(embeddings, np.float32),
            "positions": write_index[:, None] + np.arange(tokens),
            "write_index": write_index,
            "wanted": wanted,
        }
        if self._takes_span:
            inputs["span"] = np.array([-(-end // SPAN_STEP) * SPAN_STEP])
        else:
            inputs["kv_length"] = write_index + tokens
        logits = np.empty((len(wanted), self.vocabulary_size), np.float32)
        binding = self._slot_binding(first_slot, count)
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
            raise BackendError(f"the LLM failed on {count} rows of {tokens} positions: {error}") from error
        for row, position in enumerate(write_index.tolist()):
            self._clear_if_poisoned(first_slot + row, position, tokens, logits[wanted[:, 0] == row])
        return logits

    def _clear_if_poisoned(self, slot: int, position: int, tokens: int, logits: Float32) -> None:
        """Zero a slot where NaN or infinity came up, which would reach the slot's next request through the mask.

        What is not finite in any layer is so in the last one's keys and values too, or its logits.
        """
        last_layer = self.cache.memory[-2:, slot, ..., position : position + tokens, :]
        if not (np.isfinite(logits).all() and np.isfinite(last_layer).all()):
            self.cache.memory[:, slot, ..., : position + tokens, :] = 0

    def _slot_binding(self, first_slot: int, count: int) -> onnxruntime.IOBinding:
        """A binding whose slot inputs and outputs are the memory of `count` slots: row i of a run is slot first_slot + i."""
        if (first_slot, count) not in self._bindings:
            binding = self._session.io_binding()
            for name, memory in zip(self._slot_names, self.cache.memory, strict=True):
                rows = memory[first_slot : first_slot + count]
                kind, layer = name.split("_")
                binding.bind_input(name, "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
                binding.bind_output(f"{kind}_out_{layer}", "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
            self._bindings[first_slot, count] = binding
        return self._bindings[first_slot, count]
