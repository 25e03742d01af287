"""The LLM on TensorRT: one plan with a decode and a prefill profile, over key/value slots that it updates in place."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from models.bundle.plans import DECODE_PROFILE, PREFILL_PROFILE, PlanError
from models.protocols import DecodeRow, Float32, Int64, PrefillRow
from models.runtimes.cuda.device import Device
from models.runtimes.cuda.plan import Plan, PlanContext
from models.runtimes.cuda.slots import SlotMemory
from models.runtimes.cuda.steps import INPUTS, CapturedStep, Step, StepInputs, StepMemory, StepShape, all_places
from models.runtimes.onnx.decoder import EmbeddingTable

DRAFT_TOKENS = (5, 9, 17)
"""A token and the drafts that follow it (`server.engine.runner.speculation`): steps of these lengths are captured, and those
in between padded. A GPU takes as long for a few positions as for one."""
SMALL_BATCH_POSITIONS = 256
"""Prompts that have no more positions together, padding included, are prefilled together: a step takes as long for one."""


class TensorRtLLM:
    """Implements `models.protocols.LLM` for plans of `models.llms.llama`. For one thread.

    `embeddings` is the input embedding table as `.npy`. Decode steps, and those that verify drafts, are captured graphs, made at
    the start, one for each bucket of rows. The contract's equal bits do not hold: a plan computes in bfloat16, by kernels that
    depend on the step's size, so that near-ties may fall otherwise in another batch (docs/gpu.md).

    The last position of each slot is where rows of a bucket that have no request write, so `max_positions` is one less than
    the plan's. Raises `PlanError` where the plan is not the LLM's or too small, `BackendError` where memory or files do not do.
    """

    def __init__(self, device: Device, plan: Plan, embeddings: Path, *, slots: int) -> None:
        layers = sum(name.startswith("key_") for name in plan.inputs)
        pairs = [f"{kind}_{layer}" for kind in ("key", "value") for layer in range(layers)]
        plan.require({*INPUTS, *pairs}, {"logits", *(name.replace("_", "_out_") for name in pairs)}, profiles=2)
        self.slots = slots
        self.max_positions = plan.inputs["key_0"].shape[-2] - 1
        self.embedding_size = plan.inputs["embeddings"].shape[-1]
        self.vocabulary_size = plan.outputs["logits"].shape[-1]
        self._embeddings = EmbeddingTable(embeddings, self.vocabulary_size, self.embedding_size)
        shapes = plan.inputs["embeddings"].largest
        decode_rows, (prefill_rows, prefill_tokens, _) = shapes[DECODE_PROFILE][0], shapes[PREFILL_PROFILE]
        self._largest = StepShape(prefill_rows, prefill_tokens, plan.inputs["wanted"].largest[PREFILL_PROFILE][0])
        if slots > decode_rows:
            raise PlanError(
                f"The plan {plan.name} decodes {decode_rows} requests at a time and there are {slots} slots: set --slots to "
                f"{decode_rows} at most, or build it with `python -m export.tensorrt_plans --part llm --decode-rows {slots}`."
            )
        self._plan = plan
        self._stream = device.stream()
        self.cache = SlotMemory(device, self._stream, plan, slots)
        decode = [StepShape(rows, 1, rows) for rows in buckets(slots)]
        self._memory = StepMemory(
            device, self._stream, self.embedding_size, self.vocabulary_size, [self._largest, *decode, *self._draft_shapes()]
        )
        self._workspace = plan.workspace()
        self._decode_steps = {shape.rows: self._capture(DECODE_PROFILE, shape) for shape in decode}
        self._draft_steps = {shape: self._capture(PREFILL_PROFILE, shape) for shape in self._draft_shapes()}
        self._prefill_context = self._context(PREFILL_PROFILE)
        # Clear what the captures' first runs left in the slots.
        self.cache.clear()
        self._stream.synchronize()

    def embed(self, tokens: Sequence[int]) -> Float32:
        """Embeddings [tokens, embedding_size] of token ids."""
        return self._embeddings.rows(tokens)

    def prefill(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        """Append each row's embeddings to its slot; per row, logits [wanted, vocabulary_size] of its last positions."""
        for row in rows:
            self._check(row)
        return [logits for batch in self._batches(rows) for logits in self._prefill_batch(batch)]

    def decode(self, rows: Sequence[DecodeRow]) -> list[Float32]:
        """Append each row's tokens to slots 0..n-1, which `rows` must cover in that order; logits [tokens, V] per row."""
        if [row.slot for row in rows] != list(range(len(rows))):
            raise ValueError(f"decode rows must be slots 0..{len(rows) - 1} in order")
        if any(len(row.tokens) != 1 for row in rows):
            return self.prefill([PrefillRow(row.slot, row.position, self.embed(row.tokens), len(row.tokens)) for row in rows])
        if not rows:
            return []
        if not all(0 <= row.position < self.max_positions for row in rows):
            raise ValueError(f"positions {[row.position for row in rows]} are not all within the slots' {self.max_positions}")
        bucket = next(bucket for bucket in self._decode_steps if bucket >= len(rows))
        idle = bucket - len(rows)
        # A row without a request looks at one position, and writes to the one that no request ever uses.
        positions = np.array([row.position for row in rows] + [0] * idle, np.int64)
        embeddings = self.embed([row.tokens[0] for row in rows] + [rows[0].tokens[0]] * idle)
        inputs = StepInputs(
            embeddings[:, None],
            positions=positions[:, None],
            write_index=np.concatenate([positions[: len(rows)], np.full(idle, self.max_positions)]),
            kv_length=positions + 1,
            wanted=np.stack([np.arange(bucket), np.zeros(bucket, np.int64)], axis=1),
        )
        logits = list(self._replay(self._decode_steps[bucket], inputs)[: len(rows), None])
        self._clear_poisoned(0, inputs.embeddings[: len(rows)], logits)
        return logits

    def _check(self, row: PrefillRow) -> None:
        end = row.position + len(row.embeddings)
        if not 0 <= row.slot < self.slots or row.position < 0 or not len(row.embeddings):
            raise ValueError(f"{len(row.embeddings)} positions for slot {row.slot} from {row.position}: out of range")
        if end > self.max_positions:
            raise ValueError(f"position {end - 1} is beyond the slot's {self.max_positions} positions")

    def _batches(self, rows: Sequence[PrefillRow]) -> Iterator[list[PrefillRow]]:
        """Neighbours in neighbouring slots together, as far as one step of the plan takes them."""
        batch: list[PrefillRow] = []
        for row in rows:
            if batch and not (row.slot == batch[-1].slot + 1 and self._fit_together([*batch, row])):
                yield batch
                batch = []
            batch = [*batch, row]
        if batch:
            yield batch

    def _fit_together(self, rows: Sequence[PrefillRow]) -> bool:
        longest = max(len(row.embeddings) for row in rows)
        return (
            len(rows) <= self._largest.rows
            and longest <= self._largest.tokens
            and longest * len(rows) <= SMALL_BATCH_POSITIONS
            and sum(max(row.wanted, 1) for row in rows) <= self._largest.wanted
            and all(row.position + longest <= self.max_positions for row in rows)
        )

    def _prefill_batch(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        if len(rows) > 1:
            return self._run(rows)
        pieces = [self._run([piece])[0] for piece in self._pieces(rows[0])]
        return [np.concatenate(pieces)]

    def _pieces(self, row: PrefillRow) -> Iterator[PrefillRow]:
        """Yield a row in steps that the plan takes."""
        step = min(self._largest.tokens, self._largest.wanted) if row.wanted > 1 else self._largest.tokens
        first_wanted = len(row.embeddings) - row.wanted
        for start in range(0, len(row.embeddings), step):
            part = row.embeddings[start : start + step]
            wanted = max(0, start + len(part) - max(start, first_wanted))
            yield PrefillRow(row.slot, row.position + start, part, wanted)

    def _run(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        """Run one step over neighbouring slots; return logits [wanted, V] per row."""
        captured, tokens = self._draft_step(rows)
        positions = np.array([row.position for row in rows], np.int64)
        places = wanted_places(rows)
        # A plan gives the logits of one position at least.
        asked = places if len(places) else np.zeros((1, 2), np.int64)
        inputs = StepInputs(
            pad_rows(rows, tokens),
            positions=positions[:, None] + np.arange(tokens),
            write_index=positions,
            kv_length=positions + tokens,
            wanted=all_places(captured.shape) if captured else asked,
        )
        if captured:
            logits = self._replay(captured, inputs)[places[:, 0] * tokens + places[:, 1]]
        else:
            self._memory.stage(inputs)
            Step(self._prefill_context, self._memory, self.cache, inputs.shape, rows[0].slot).enqueue()
            self._stream.synchronize()
            logits = self._memory.take_logits(inputs.shape)[: len(places)]
        split = split_by_row(logits, rows)
        self._clear_poisoned(rows[0].slot, inputs.embeddings, split)
        return split

    def _draft_step(self, rows: Sequence[PrefillRow]) -> tuple[CapturedStep | None, int]:
        """Return the captured step for these rows, if there is one, and how many tokens it has; else as many as they need."""
        longest = max(len(row.embeddings) for row in rows)
        if rows[0].slot == 0 and all(row.wanted > 1 or len(row.embeddings) == 1 for row in rows):
            for shape, captured in self._draft_steps.items():
                fits = all(row.position + shape.tokens <= self.max_positions for row in rows)
                if shape.rows == len(rows) and shape.tokens >= longest and fits:
                    return captured, shape.tokens
        return None, longest

    def _draft_shapes(self) -> list[StepShape]:
        """Return a shape for every number of rows: padding by rows would write to slots that are in use."""
        return [
            StepShape(rows, tokens, rows * tokens)
            for rows in range(1, min(self.slots, self._largest.rows) + 1)
            for tokens in DRAFT_TOKENS
            if tokens <= min(self._largest.tokens, self.max_positions) and rows * tokens <= self._largest.wanted
        ]

    def _clear_poisoned(self, first_slot: int, embeddings: Iterable[Float32], logits: Sequence[Float32]) -> None:
        """Zero the slots where NaN or infinity came up, which would reach their next request through the mask."""
        for row, (read, gave) in enumerate(zip(embeddings, logits, strict=True)):
            if not (np.isfinite(read).all() and np.isfinite(gave).all()):
                self.cache.clear_slot(first_slot + row)

    def _context(self, profile: int) -> PlanContext:
        return PlanContext(self._plan, profile, self._stream, self._workspace)

    def _capture(self, profile: int, shape: StepShape) -> CapturedStep:
        zeros = np.zeros((shape.rows, shape.tokens, self.embedding_size), np.float32)
        numbers = np.zeros(shape.rows, np.int64)
        positions = np.broadcast_to(np.arange(shape.tokens), (shape.rows, shape.tokens))
        self._memory.stage(StepInputs(zeros, positions, numbers, numbers + shape.tokens, all_places(shape)))
        return Step(self._context(profile), self._memory, self.cache, shape, first_slot=0).capture()

    def _replay(self, captured: CapturedStep, inputs: StepInputs) -> Float32:
        self._memory.stage(inputs)
        captured.graph.replay()
        self._stream.synchronize()
        return self._memory.take_logits(inputs.shape)


def buckets(slots: int) -> list[int]:
    """Numbers of rows that decode steps are captured for: powers of two, and `slots` itself."""
    return sorted({*(2**power for power in range(slots.bit_length()) if 2**power < slots), slots})


def pad_rows(rows: Sequence[PrefillRow], tokens: int) -> Float32:
    """Return the rows' embeddings [rows, tokens, D], each padded on the right to `tokens` positions.

    With its own last position: what padding leaves in the slots must be finite.
    """
    return np.stack([row.embeddings[np.minimum(np.arange(tokens), len(row.embeddings) - 1)] for row in rows])


def wanted_places(rows: Sequence[PrefillRow]) -> Int64:
    """(row, token) [N, 2] of the positions whose logits are wanted, row after row."""
    places = [
        (index, token) for index, row in enumerate(rows) for token in range(len(row.embeddings) - row.wanted, len(row.embeddings))
    ]
    return np.array(places, np.int64).reshape(-1, 2)


def split_by_row(logits: Float32, rows: Sequence[PrefillRow]) -> list[Float32]:
    """Logits [N, V] of `wanted_places`, cut into those of each row."""
    return np.split(logits, np.cumsum([row.wanted for row in rows[:-1]], dtype=np.int64))
