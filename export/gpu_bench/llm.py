"""The memory that the LLM takes on a GPU, and the times of its steps."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from export.gpu_bench.steps import StepRig, random_inputs
from export.gpu_bench.timing import Scale, Section, Timing, load_plan, time_enqueued, time_host
from models.bundle.io import Bundle
from models.protocols import DecodeRow, PrefillRow
from models.runtimes.cuda.device import Device
from models.runtimes.cuda.gpu_memory import slot_bytes
from models.runtimes.cuda.llm_tensorrt import DRAFT_TOKENS, TensorRtLLM, buckets
from models.runtimes.cuda.steps import StepShape

CONTEXT = 200
"""Positions in a slot before a decode step that is timed."""


def time_llm(device: Device, bundle: Bundle, scale: Scale) -> Iterator[Section]:
    """Yield the memory that the LLM takes, and times of its decode steps, prefills and drafts."""
    free_before = device.free_memory_bytes()
    plan = load_plan(device, bundle, "llm")
    free_with_plan = device.free_memory_bytes()
    llm = TensorRtLLM(device, plan, bundle.path(bundle.manifest.require_llm().embedding), slots=scale.slots)
    section, slot = bundle.manifest.require_llm(), plan.inputs["key_0"]
    one_slot = slot_bytes(section.layers, section.key_value_heads, section.head_size, slot.shape[-2], slot.dtype.itemsize)
    sizes = {
        "taken by the plan": free_before - free_with_plan,
        f"taken by {scale.slots} slots, steps and graphs": free_with_plan - device.free_memory_bytes(),
        f"of it {scale.slots} slots, by their size": scale.slots * one_slot,
        "of it between kernels, by the plan": plan.workspace_bytes,
        "free": device.free_memory_bytes(),
    }
    yield Section("Memory of the LLM", ("", "MB"), [(name, f"{size / 1e6:.1f}") for name, size in sizes.items()])

    context, repeats = min(CONTEXT, llm.max_positions // 2), scale.repeats

    def time_decode(rows: int, tokens: int) -> Timing:
        asked = [DecodeRow(slot, context, list(range(1, tokens + 1))) for slot in range(rows)]
        return time_host(partial(llm.decode, asked), repeats)

    rig = StepRig(device, plan, scale.slots, [StepShape(rows, 1, rows) for rows in buckets(scale.slots)])
    decode = []
    for rigged in rig.rigged:
        rows = rigged.shape.rows
        rig.stage(random_inputs(rigged.shape, rig.embedding_size, np.full(rows, context), seed=0))
        captured = time_enqueued(rigged.captured.graph.replay, rig.stream, repeats)
        eager = time_enqueued(rigged.step.enqueue, rig.stream, repeats)
        decode.append((str(rows), str(time_decode(rows, 1)), str(captured), str(eager)))
    heading = ("rows", "decode, from and to the host", "the replayed graph", "the same without a graph")
    yield Section(f"Decode steps at position {context}, median (shortest) ms", heading, decode)
    noise = np.random.default_rng(0).standard_normal((max(scale.prefill_tokens), llm.embedding_size), np.float32)
    yield Section(
        "Prefill of one row, median (shortest) ms",
        ("positions", "prefill"),
        [
            (str(tokens), str(time_host(partial(llm.prefill, [PrefillRow(0, 0, noise[:tokens] / np.float32(10))]), repeats)))
            for tokens in scale.prefill_tokens
            if tokens <= llm.max_positions
        ],
    )
    drafts = [(str(tokens), str(time_decode(1, tokens))) for tokens in DRAFT_TOKENS]
    yield Section("A token with a draft behind it, one row, median (shortest) ms", ("tokens", "decode"), drafts)
