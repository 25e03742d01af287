"""Measure what the models take on the GPU of this machine, and write one report with the verdicts of its tests.

    python -m export.gpu_bench                  the tests in tests/gpu, then all times; `make gpu-check` runs this
    python -m export.gpu_bench --without-tests  the times only

The plans that are missing are built first, into a copy of the default bundle. Exits with 1 if a test failed.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.default_bundle import default_cache_dir, ensure_default_bundle
from export.default_recipe import GPU_PRECISION
from export.gpu_bench.steps import StepRig, random_inputs
from export.markdown import table
from export.tensorrt_parts import adapter_part, encoder_part, llm_part, read_fitting_llama
from export.tensorrt_plans import build_into_bundle, default_weights, timing_cache_file
from export.tensorrt_profiles import Limits
from kernels import reference
from kernels import triton as triton_operators
from kernels.adapter.forward import AdapterFrames, Operators, adapt
from kernels.adapter.weights import AdapterWeights, map_tensors, pack_adapter
from models.assemble import draft_table_path
from models.bundle.io import Bundle, open_bundle
from models.bundle.plans import PlanError, find_plan
from models.projectors.subsample import read_adapter
from models.protocols import DecodeRow, PrefillRow
from models.runtimes.cuda.device import Device, Stream, capture_launched, plan_key, upload
from models.runtimes.cuda.gpu_memory import slot_bytes
from models.runtimes.cuda.llm_tensorrt import DRAFT_TOKENS, TensorRtLLM, buckets
from models.runtimes.cuda.onnx_session import open_device_session
from models.runtimes.cuda.plan import Plan, PlanContext
from models.runtimes.cuda.steps import StepShape

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "triton", "onnxruntime-gpu", "tensorrt", "numpy")
FLOAT = torch.bfloat16
CONTEXT = 200
"""Positions in a slot before a decode step that is timed."""


@dataclass(frozen=True)
class Scale:
    """How much is measured. `batches` are (frames of an utterance, utterances) of the adapter; `vocabulary` cuts the table that
    the adapter's kernels score, None leaves it whole. `calls_in_graph` of an operator are timed together."""

    repeats: int = 50
    slots: int = 32
    prefill_tokens: tuple[int, ...] = (32, 128, 512)
    batches: tuple[tuple[int, int], ...] = ((125, 1), (125, 8), (125, 32))
    vocabulary: int | None = None
    calls_in_graph: int = 20


@dataclass(frozen=True)
class Section:
    """A table of the report."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        return f"## {self.title}\n\n{table(self.heading, self.rows)}\n"


def prepare_bundle(device: Device) -> Bundle:
    """Return a copy of the default bundle in fp32 with plans of all parts for the device; missing plans are built.

    Raises `FetchError`, `BundleError` or `TensorRTError`.
    """
    cache_dir = default_cache_dir()
    source = ensure_default_bundle(cache_dir, GPU_PRECISION)
    folder = cache_dir / "gpu-check" / source.name
    if not folder.exists():
        unfinished = folder.with_name(folder.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        unfinished.rename(folder)
    bundle = open_bundle(folder)
    library, gpu, limits = device.tensorrt, device.gpu.architecture, Limits()
    positions = bundle.manifest.require_llm().max_positions
    with default_weights(cache_dir) as weights:
        for part in (
            encoder_part(weights, bundle, limits),
            adapter_part(bundle, limits),
            llm_part(partial(read_fitting_llama, weights.gguf, bundle), "bf16", positions, limits),
        ):
            try:
                find_plan(bundle, part.name, plan_key(device), positions=part.max_positions)
            except PlanError:
                build_into_bundle(library, part, gpu, folder, timing_cache_file(cache_dir, library, gpu))
    return open_bundle(folder)


def load_plan(device: Device, bundle: Bundle, part: str) -> Plan:
    """Return the bundle's plan of a part for the device. Raises `PlanError`."""
    found = find_plan(bundle, part, plan_key(device))
    return Plan(device, bundle.path(found.file).read_bytes(), found.file)


# Times.


@dataclass(frozen=True)
class Timing:
    """Of several runs, in milliseconds."""

    median_ms: float
    shortest_ms: float

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ({self.shortest_ms:.3f})"


def time_host(work: Callable[[], object], repeats: int) -> Timing:
    """Time work that returns when it is done. One run in ten, at least one, is a warm-up: it compiles and loads kernels."""
    for _ in range(max(1, repeats // 10)):
        work()
    times_ms = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    return Timing(median(times_ms), min(times_ms))


def time_enqueued(enqueue: Callable[[], object], stream: Stream, repeats: int) -> Timing:
    """Time work that is put on the stream, until the stream is done."""

    def work() -> None:
        enqueue()
        stream.synchronize()

    return time_host(work, repeats)


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


@dataclass(frozen=True)
class Batch:
    """Utterances of so many frames each: states of noise, and the utterances' boundaries in frames."""

    frames: int
    utterances: int
    states: Tensor
    boundaries: Tensor


class AdapterBench:
    """Times the adapter by our kernels and by what they have to beat."""

    OPERATORS = ("qkv", "attention", "attention out", "feed-forward in", "feed-forward out")
    LAST_OPERATORS = ("queries", "side", "blank filter", "best tokens")

    def __init__(self, device: Device, bundle: Bundle, scale: Scale) -> None:
        self._device, self._bundle, self._repeats = device, bundle, scale.repeats
        self._calls = scale.calls_in_graph
        self._stream = device.stream()
        manifest = bundle.manifest
        trained = read_adapter(bundle.path(manifest.require_projector().require_weights()))
        embedding = np.asarray(np.load(draft_table_path(bundle))[: scale.vocabulary], np.float32)
        weights = {name: torch.from_numpy(array) for name, array in trained.weights.items()}
        most = max(frames * utterances for frames, utterances in scale.batches)
        packed = pack_adapter(weights, trained.config, torch.from_numpy(embedding), FLOAT, FLOAT, most)
        self._weights: AdapterWeights = map_tensors(packed, self._upload)

    def batch(self, frames: int, utterances: int) -> Batch:
        shape = frames * utterances * self._weights.reduction, self._weights.encoder_width
        states = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(FLOAT)
        edges = list(accumulate([frames] * utterances, initial=0))
        return Batch(frames, utterances, self._upload(states), self._upload(torch.tensor(edges, dtype=torch.int32)))

    def whole_pass(self, batch: Batch) -> Section:
        """Time the whole adapter by each contender. TensorRT and ONNX Runtime take one utterance a run."""
        makers: dict[str, Callable[[], Timing]] = {
            "our kernels": lambda: self._launched(partial(self._adapt, triton_operators, batch)),
            "our kernels, a captured graph": lambda: self._captured(partial(self._adapt, triton_operators, batch)),
            "reference operators": lambda: self._launched(partial(self._adapt, reference, batch)),
            "torch.compile of these": lambda: self._launched(torch.compile(partial(self._adapt, reference, batch))),
            "TensorRT, a captured graph": lambda: self._tensorrt(batch),
            "ONNX Runtime": lambda: self._onnxruntime(batch),
        }
        rows = []
        for name, measure in makers.items():
            try:
                rows.append((name, str(measure())))
            except Exception as error:  # a contender that cannot run is out of the race
                rows.append((name, f"could not: {type(error).__name__}: {str(error)[:500]}"))
        title = f"The adapter, {batch.utterances} x {batch.frames} frames, median (shortest) ms"
        return Section(title, ("by", "time"), rows)

    def operators(self, batch: Batch) -> Section:
        """Time each operator by kernel, of several in one graph so that launches do not count, and by its reference."""
        rows, calls = [], self._calls
        for name, call in self._record(batch).items():

            def several(call: Callable[[Operators], object] = call) -> list[Tensor]:
                for _ in range(calls):
                    call(triton_operators)
                return []

            _, graph = capture_launched(self._device, several, self._stream)
            kernel = time_enqueued(graph.replay, self._stream, self._repeats)
            launched = self._launched(partial(call, reference))
            rows.append((name, f"{1e3 * kernel.median_ms / calls:.1f}", f"{1e3 * launched.median_ms:.1f}"))
        title = f"Operators of the adapter, {batch.utterances} x {batch.frames} frames"
        return Section(title, ("operator", "kernel, microseconds", "reference, microseconds"), rows)

    def _record(self, batch: Batch) -> dict[str, Callable[[Operators], object]]:
        """Run the adapter once and return, by name, what repeats each of its operators' first calls."""
        recorded: list[Callable[[Operators], object]] = []

        def recording(operator: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                recorded.append(lambda operators: getattr(operators, operator)(*arguments, **options))
                return getattr(reference, operator)(*arguments, **options)

            return call

        # Any: the namespace has the operators' names, which is all that `adapt` asks for.
        operators: Any = SimpleNamespace(**{name: recording(name) for name in reference.__all__})
        self._device.launch(lambda: _discard(self._adapt(operators, batch)), self._stream)
        self._stream.synchronize()
        order = ["input", *self.OPERATORS * len(self._weights.layers), *self.LAST_OPERATORS]
        calls: dict[str, Callable[[Operators], object]] = {}
        for name, call in zip(order, recorded, strict=True):
            calls.setdefault(name, call)
        return calls

    def _adapt(self, operators: Operators, batch: Batch) -> AdapterFrames:
        return adapt(self._weights, operators, batch.states, batch.boundaries)

    def _launched(self, work: Callable[[], object]) -> Timing:
        enqueue = partial(self._device.launch, lambda: _discard(work()), self._stream)
        return time_enqueued(enqueue, self._stream, self._repeats)

    def _captured(self, work: Callable[[], AdapterFrames]) -> Timing:
        _, graph = capture_launched(self._device, work, self._stream)
        return time_enqueued(graph.replay, self._stream, self._repeats)

    def _tensorrt(self, batch: Batch) -> Timing:
        plan = load_plan(self._device, self._bundle, "adapter")
        context = PlanContext(plan, 0, self._stream, plan.workspace())
        states = self._one_utterance(batch)
        outputs = {name: self._device.empty((batch.frames, *each.shape[1:]), each.dtype) for name, each in plan.outputs.items()}
        context.bind({"states": states, **outputs})

        def work() -> list[Tensor]:
            for _ in range(batch.utterances):
                context.enqueue()
            return []

        work()
        self._stream.synchronize()
        _, graph = self._device.capture(work, self._stream)
        return time_enqueued(graph.replay, self._stream, self._repeats)

    def _onnxruntime(self, batch: Batch) -> Timing:
        graph = self._bundle.path(self._bundle.manifest.require_projector().graph)
        session = open_device_session(graph, self._device, self._stream, len(os.sched_getaffinity(0)))
        states = self._one_utterance(batch)
        binding, place = session.io_binding(), self._device.binding_device
        binding.bind_input("states", *place, np.float32, tuple(states.shape), states.data_ptr())
        for output in session.get_outputs():
            binding.bind_output(output.name, *place)

        def work() -> None:
            for _ in range(batch.utterances):
                session.run_with_iobinding(binding)

        return self._launched(work)

    def _one_utterance(self, batch: Batch) -> Tensor:
        return self._upload(batch.states[: batch.frames * self._weights.reduction].float().cpu())

    def _upload(self, tensor: Tensor) -> Tensor:
        return upload(self._device, tensor, self._stream)


def _discard(_result: object) -> None:
    """Let a function with a result be launched."""


def time_adapter(device: Device, bundle: Bundle, scale: Scale) -> Iterator[Section]:
    """Yield times of the adapter by batch, and of each of its operators."""
    with device.current():
        bench = AdapterBench(device, bundle, scale)
        for frames, utterances in scale.batches:
            batch = bench.batch(frames, utterances)
            yield bench.whole_pass(batch)
            yield bench.operators(batch)


# The report.


def describe_machine(device: Device) -> Section:
    """Return what the report was made by: GPU, commit and versions."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    rows = [
        ("GPU", f"{device.gpu.name}, {device.gpu.architecture}"),
        ("plans", str(plan_key(device))),
        ("commit", described.stdout.strip() or "unknown: not a git checkout"),
        ("written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("Python", platform.python_version()),
        *((name, _version(name)) for name in PACKAGES),
    ]
    return Section("Machine", ("", ""), rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def run_tests() -> tuple[str, bool]:
    """Run the tests that need a GPU. Return their summary as Markdown, and whether all of them passed."""
    command = ["env", "TRITON_INTERPRET=0", sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rA", "--tb=short", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"## Tests\n\n```\n{done.stdout[-20_000:]}```\n", done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check.md"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--without-tests", action="store_true", help="measure times only")
    options = parser.parse_args()
    # The default install has no torch for CUDA.
    from models.runtimes.cuda.torch_device import TorchDevice

    tests, passed = ("", True) if options.without_tests else run_tests()
    parts = ["# GPU check\n", tests]
    device = TorchDevice()
    bundle, scale = prepare_bundle(device), Scale()
    parts.append(describe_machine(device).markdown())
    for measure in (time_llm, time_adapter):
        for section in measure(device, bundle, scale):
            parts.append(section.markdown())
            # After each section, so that a crash leaves what was measured.
            options.out.write_text("\n".join(parts), encoding="utf-8")
    print(options.out)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
