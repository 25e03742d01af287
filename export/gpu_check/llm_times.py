"""What steps of the LLM take, and its memory."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from export.gpu_check.report import Findings, Table
from export.gpu_check.step_rig import StepRig, random_inputs
from export.gpu_check.timing import time_enqueued, time_host
from export.gpu_check.workbench import Workbench
from models.protocols import LLM, DecodeRow, PrefillRow
from models.runtimes.cuda.gpu_memory import slot_bytes
from models.runtimes.cuda.llm_tensorrt import DRAFT_TOKENS, buckets
from models.runtimes.cuda.steps import StepShape

CONTEXT = 200
"""Positions that are in a slot before the step that is timed."""


def check_llm_times(bench: Workbench) -> Findings:
    """Decode steps by rows, prefills, drafts."""
    llm, plan, repeats = bench.loaded_llm.llm, bench.loaded_llm.plan, bench.scale.repeats
    times = f"Median (shortest) ms of {repeats}"
    context = min(CONTEXT, llm.max_positions // 2)
    shapes = [StepShape(rows, 1, rows) for rows in buckets(bench.scale.slots)]
    rig = StepRig(bench.device, plan, bench.scale.slots, shapes)
    rows = []
    for rigged in rig.rigged:
        count = rigged.shape.rows
        rig.stage(random_inputs(rigged.shape, rig.embedding_size, np.full(count, context), seed=0))
        whole = time_host(partial(llm.decode, _decode_rows(count, context, 1)), repeats)
        captured = time_enqueued(rigged.captured.graph.replay, rig.stream, repeats)
        eager = time_enqueued(rigged.step.enqueue, rig.stream, repeats)
        rows.append((str(count), str(whole), str(captured), str(eager)))
    heading = (
        "rows",
        "decode, from and to the host",
        "of it a replayed graph",
        "the same step without a graph",
    )
    decode = Table(f"{times}: a decode step at position {context}", heading, tuple(rows))
    prefill = Table(f"{times}: a prefill of one row", ("positions", "prefill"), tuple(_prefills(bench, llm)))
    drafts = Table(
        f"{times}: a token with drafts behind it, one row at position {context}",
        ("tokens", "decode"),
        tuple(
            (str(tokens), str(time_host(partial(llm.decode, _decode_rows(1, context, tokens)), repeats)))
            for tokens in DRAFT_TOKENS
        ),
    )
    return Findings((decode, prefill, drafts))


def check_memory(bench: Workbench) -> Findings:
    """What loading the LLM took of the device's memory, beside what its parts are said to take."""
    loaded = bench.loaded_llm
    before, after_plan, after_slots = loaded.free_bytes
    slot = loaded.plan.inputs["key_0"]
    llm, positions = bench.bundle.manifest.llm, slot.shape[-2]
    one_slot = slot_bytes(llm.layers, llm.key_value_heads, llm.head_size, positions, slot.dtype.itemsize)
    rows = [
        ("free before", before, None),
        ("taken by the plan", before - after_plan, bench.bundle.manifest.files[loaded.plan.name].bytes),
        (f"taken by {bench.scale.slots} slots, steps and graphs", after_plan - after_slots, None),
        (f"of it {bench.scale.slots} slots", None, bench.scale.slots * one_slot),
        ("of it between kernels", None, loaded.plan.workspace_bytes),
        ("free after", after_slots, None),
    ]
    figures = tuple((name, *("" if each is None else f"{each / 1e6:.1f}" for each in pair)) for name, *pair in rows)
    return Findings((Table("Memory of the device in MB", ("", "measured", "by its size"), figures),))


def _prefills(bench: Workbench, llm: LLM) -> Iterator[tuple[str, str]]:
    noise = np.random.default_rng(0).standard_normal((max(bench.scale.prefill_tokens), llm.embedding_size), np.float32)
    for tokens in bench.scale.prefill_tokens:
        if tokens <= llm.max_positions:
            row = PrefillRow(0, 0, noise[:tokens] / np.float32(10))
            yield str(tokens), str(time_host(partial(llm.prefill, [row]), bench.scale.repeats))


def _decode_rows(count: int, position: int, tokens: int) -> list[DecodeRow]:
    return [DecodeRow(slot, position, list(range(1, tokens + 1))) for slot in range(count)]
