"""The LLM on ONNX Runtime: one session, and key/value slots in numpy memory that the graph updates in place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.backends import BackendError, DecodeRow, Float32, Int64, PrefillRow


class OnnxLLM:
    """Implements `models.backends.LLM` for the decoder graphs of `export.llama_decoder`. Not thread-safe.

    `graph` is the ONNX file, `embeddings` the input embedding table as `.npy` [vocabulary, D] in float16 or float32, of
    which only the rows in use are read into memory. Slot memory likewise: a page is taken when it is first written.
    Prefill runs row by row: one row fills the cores, and a row alone is what the fused attention operator takes.
    Raises `BackendError` where the files cannot be loaded or do not fit together.
    """

    def __init__(self, graph: Path, embeddings: Path, *, slots: int = 8, threads: int = 2) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            self._embeddings = np.load(embeddings, mmap_mode="r")
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
            raise BackendError(f"the LLM cannot be loaded from {graph.name} and {embeddings.name}: {error}") from error

        shapes = {value.name: value.shape for value in [*self._session.get_inputs(), *self._session.get_outputs()]}
        _, key_value_heads, self.max_positions, head_size = shapes["key_0"]
        self.slots = slots
        self.embedding_size: int = shapes["embeddings"][-1]
        self.vocabulary_size: int = shapes["logits"][-1]
        if self._embeddings.shape != (self.vocabulary_size, self.embedding_size):
            raise BackendError(f"{embeddings.name} has the shape {self._embeddings.shape}, which does not fit {graph.name}")
        # Zeros, because the standard attention operator multiplies what it masks by 0, and 0 * NaN is NaN.
        self._memory: dict[str, Float32] = {
            name: np.zeros((slots, key_value_heads, self.max_positions, head_size), np.float32)
            for name in shapes
            if name.startswith(("key_", "value_")) and "_out_" not in name
        }
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    def embed(self, tokens: Sequence[int]) -> Float32:
        """Embeddings [tokens, embedding_size] of token ids."""
        rows: Float32 = self._embeddings[np.asarray(tokens, np.int64)].astype(np.float32)
        return rows

    def prefill(self, rows: Sequence[PrefillRow]) -> Float32:
        """Append each row's embeddings to its slot; logits [rows, vocabulary_size] of each row's last position."""
        logits = np.empty((len(rows), self.vocabulary_size), np.float32)
        for index, row in enumerate(rows):
            self._run(row.slot, row.embeddings[None], np.array([row.position], np.int64), logits[index : index + 1])
        return logits

    def decode(self, rows: Sequence[DecodeRow]) -> Float32:
        """One token for slots 0..n-1, which `rows` must cover in that order; logits [n, vocabulary_size]."""
        if [row.slot for row in rows] != list(range(len(rows))):
            raise ValueError(f"decode rows must be slots 0..{len(rows) - 1} in order")
        logits = np.empty((len(rows), self.vocabulary_size), np.float32)
        if rows:
            embeddings = self.embed([row.token for row in rows])[:, None]
            self._run(0, embeddings, np.array([row.position for row in rows], np.int64), logits)
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of K/V from one slot to another."""
        for memory in self._memory.values():
            memory[target, :, :length] = memory[source, :, :length]

    def _run(self, first_slot: int, embeddings: Float32, write_index: Int64, logits: Float32) -> None:
        """Run embeddings [rows, tokens, D] over the slots from `first_slot` on; fill `logits` [rows, V] of the last tokens."""
        count, tokens, _ = embeddings.shape
        if first_slot < 0 or first_slot + count > self.slots or write_index.min() < 0 or tokens == 0:
            raise ValueError(f"{tokens} tokens for {count} slots from {first_slot}, position {write_index.min()}: out of range")
        if write_index.max() + tokens > self.max_positions:
            raise ValueError(f"position {write_index.max() + tokens - 1} is beyond the slot's {self.max_positions} positions")
        inputs: dict[str, npt.NDArray[np.generic]] = {
            "embeddings": np.ascontiguousarray(embeddings, np.float32),
            "positions": write_index[:, None] + np.arange(tokens),
            "write_index": write_index,
            "kv_length": write_index + tokens,
            "wanted": np.stack([np.arange(count), np.full(count, tokens - 1)], axis=1),
        }
        binding = self._slot_binding(first_slot, count)
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise BackendError(f"the LLM failed on {count} rows of {tokens} positions: {error}") from error
        self._clear_poisoned(first_slot, logits)

    def _clear_poisoned(self, first_slot: int, logits: Float32) -> None:
        """Zero the slots whose logits are not finite: NaN left behind would reach the slot's next request through the mask."""
        for row in np.flatnonzero(~np.isfinite(logits).all(axis=1)):
            for memory in self._memory.values():
                memory[first_slot + row] = 0

    def _slot_binding(self, first_slot: int, count: int) -> onnxruntime.IOBinding:
        """A binding whose slot inputs and outputs are the memory of `count` slots: row i of a run is slot first_slot + i."""
        if (first_slot, count) not in self._bindings:
            binding = self._session.io_binding()
            for name, memory in self._memory.items():
                rows = memory[first_slot : first_slot + count]
                kind, layer = name.split("_")
                binding.bind_input(name, "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
                binding.bind_output(f"{kind}_out_{layer}", "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
            self._bindings[first_slot, count] = binding
        return self._bindings[first_slot, count]
