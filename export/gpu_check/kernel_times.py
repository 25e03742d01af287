"""The adapter by our kernels, and by everything that they have to beat."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from export.gpu_check.operators import Call, predictions, record_calls
from export.gpu_check.report import Findings, Table
from export.gpu_check.steps import ROOT
from export.gpu_check.timing import Timing, time_enqueued
from export.gpu_check.workbench import Workbench
from kernels import fused, plain
from kernels.adapter.forward import AdapterFrames, Operators, adapt
from kernels.adapter.weights import AdapterWeights, map_tensors, pack_adapter
from kernels.parity.interpreter import interpreted
from models.runtimes.cuda.device import Stream, capture_launched, upload
from models.runtimes.cuda.onnx_session import open_device_session
from models.runtimes.cuda.plan import PlanContext

FLOAT = torch.bfloat16
LAST_CHARACTERS = 500
"""Of an error, in the report."""
TRITON, TENSORRT = "our kernels, a captured graph", "TensorRT, a captured graph"
NOTE = (
    "The kernels read a batch at once. The TensorRT plan and ONNX Runtime take one utterance a run, so a batch is as many runs, "
    "all on the memory of one; the plan's captured graph holds them all. TensorRT scores every frame, and both leave the "
    "embeddings of tokens to the host, which is not in their times. The twins and torch.compile ask the host how many frames are "
    "real, and cannot be captured."
)


@dataclass(frozen=True)
class Batch:
    """Utterances of so many frames each, and the memory that they are in."""

    frames: int
    utterances: int
    states: Tensor
    boundaries: Tensor

    @property
    def rows(self) -> int:
        return self.frames * self.utterances


def check_kernel_times(bench: Workbench) -> Findings:
    """Each size by every contender, then operator by operator. A contender that cannot run says why, and fails nothing."""
    with bench.device.current():
        lab = AdapterLab(bench)
        tables, notes = [], [NOTE]
        if bench.scale.vocabulary:
            notes.append(f"Our kernels and the twins score the first {bench.scale.vocabulary} tokens of the vocabulary only.")
        passes = []
        for frames, utterances in bench.scale.adapter_utterances:
            batch = lab.batch(frames, utterances)
            found = dict(lab.contenders(batch))
            passes += [(f"{utterances} x {frames}", name, str(result)) for name, result in found.items()]
            if bench.kind == "cuda":
                notes.append(f"{utterances} x {frames} frames: {_verdict(found[TRITON], found[TENSORRT])}")
            tables.append(lab.operators(batch))
    heading = ("utterances x frames", "by", f"median (shortest) ms of {bench.scale.repeats}")
    return Findings((Table("The whole adapter", heading, tuple(passes)), *tables), tuple(notes))


class AdapterLab:
    """The adapter's weights on the device in bfloat16, and a stream."""

    def __init__(self, bench: Workbench) -> None:
        self._bench, self._device, self._repeats = bench, bench.device, bench.scale.repeats
        self._stream: Stream = bench.device.stream()
        table = torch.from_numpy(bench.embedding[: bench.scale.vocabulary or None])
        trained = bench.adapter_weights
        weights = {name: torch.from_numpy(array) for name, array in trained.weights.items()}
        most = max(frames * utterances for frames, utterances in bench.scale.adapter_utterances)
        packed = pack_adapter(weights, trained.config, table, FLOAT, FLOAT, most)
        self._weights: AdapterWeights = map_tensors(packed, self._upload)
        self._predicted = predictions((ROOT / "kernels" / "README.md").read_text())

    def batch(self, frames: int, utterances: int) -> Batch:
        """States of noise, as large as the encoder's are."""
        generator = torch.Generator().manual_seed(0)
        shape = frames * utterances * self._weights.reduction, self._weights.encoder_width
        edges = list(accumulate([frames] * utterances, initial=0))
        states = self._upload(torch.randn(shape, generator=generator).to(FLOAT))
        return Batch(frames, utterances, states, self._upload(torch.tensor(edges, dtype=torch.int32)))

    def contenders(self, batch: Batch) -> Iterator[tuple[str, Timing | str]]:
        """Their names and times, or why there is none."""
        makers: dict[str, Callable[[], Timing]] = {
            "our kernels": self._by_kernels(lambda: self._launched(partial(self._adapt, fused, batch))),
            TRITON: self._by_kernels(lambda: self._captured(partial(self._adapt, fused, batch))),
            "plain twins": lambda: self._launched(partial(self._adapt, plain, batch)),
            "torch.compile of the twins": lambda: self._launched(torch.compile(partial(self._adapt, plain, batch))),
            "TensorRT": lambda: self._tensorrt(batch, captured=False),
            TENSORRT: lambda: self._tensorrt(batch, captured=True),
            "ONNX Runtime on the device": lambda: self._onnxruntime(batch),
        }
        for name, measure in makers.items():
            try:
                yield name, measure()
            except Exception as error:  # a contender that is out of the race
                yield name, f"could not: {type(error).__name__}: {str(error)[:LAST_CHARACTERS]}"

    def operators(self, batch: Batch) -> Table:
        """Each operator by kernel and by twin, in graphs of several calls so that launches do not count."""
        rows = []
        for call in self._record(batch):
            kernel = self._by_kernels(partial(self._in_graph, call.by(fused)))()
            twin = self._launched(call.by(plain))
            predicted = self._predicted.get(f"{call.name}, {batch.rows} rows", "")
            rows.append((call.name, f"{1e3 * kernel.median_ms:.1f}", f"{1e3 * twin.median_ms:.1f}", predicted))
        calls = self._bench.scale.calls_in_graph
        heading = ("operator", f"kernel µs, of {calls} in a graph", "twin µs, launched", "predicted µs on an H100")
        return Table(f"Operators, {batch.utterances} x {batch.frames} frames", heading, tuple(rows))

    def _record(self, batch: Batch) -> list[Call]:
        calls: list[Call] = []
        # On the stream on which they are made again: none may come before what they read is there.
        self._device.launch(lambda: calls.extend(record_calls(self._weights, batch.states, batch.boundaries)), self._stream)
        self._stream.synchronize()
        return calls

    def _by_kernels(self, measure: Callable[[], Timing]) -> Callable[[], Timing]:
        """With what the kernels need to run here: on a CPU Triton's interpreter, put right."""

        def measured() -> Timing:
            with interpreted() if self._bench.kind == "simulated" else nullcontext():
                return measure()

        return measured

    def _adapt(self, operators: Operators, batch: Batch) -> AdapterFrames:
        return adapt(self._weights, operators, batch.states, batch.boundaries)

    def _launched(self, work: Callable[[], object]) -> Timing:
        def run() -> None:
            work()

        return time_enqueued(lambda: self._device.launch(run, self._stream), self._stream, self._repeats)

    def _captured(self, work: Callable[[], AdapterFrames]) -> Timing:
        _, graph = capture_launched(self._device, work, self._stream)
        return time_enqueued(graph.replay, self._stream, self._repeats)

    def _in_graph(self, call: Callable[[], object]) -> Timing:
        calls = self._bench.scale.calls_in_graph

        def several() -> list[Tensor]:
            for _ in range(calls):
                call()
            return []

        _, graph = capture_launched(self._device, several, self._stream)
        whole = time_enqueued(graph.replay, self._stream, self._repeats)
        return Timing(whole.median_ms / calls, whole.shortest_ms / calls)

    def _tensorrt(self, batch: Batch, *, captured: bool) -> Timing:
        plan = self._bench.plan("adapter")
        context = PlanContext(plan, 0, self._stream, plan.workspace())
        states = self._upload(batch.states[: batch.frames * self._weights.reduction].float().cpu())
        outputs = {name: self._device.empty((batch.frames, *each.shape[1:]), each.dtype) for name, each in plan.outputs.items()}
        context.bind({"states": states, **outputs})

        def work() -> list[Tensor]:
            for _ in range(batch.utterances):
                context.enqueue()
            return []

        if not captured:
            return time_enqueued(work, self._stream, self._repeats)
        work()
        self._stream.synchronize()
        _, graph = self._device.capture(work, self._stream)
        return time_enqueued(graph.replay, self._stream, self._repeats)

    def _onnxruntime(self, batch: Batch) -> Timing:
        graph = self._bench.bundle.path(self._bench.bundle.manifest.projector.graph)
        session = open_device_session(graph, self._device, self._stream, self._bench.threads)
        states = self._upload(batch.states[: batch.frames * self._weights.reduction].float().cpu())
        binding = session.io_binding()
        place = self._device.binding_device
        binding.bind_input("states", *place, np.float32, tuple(states.shape), states.data_ptr())
        for output in session.get_outputs():
            binding.bind_output(output.name, *place)

        def work() -> None:
            for _ in range(batch.utterances):
                session.run_with_iobinding(binding)

        return time_enqueued(lambda: self._device.launch(work, self._stream), self._stream, self._repeats)

    def _upload(self, tensor: Tensor) -> Tensor:
        return upload(self._device, tensor, self._stream)


def _verdict(ours: Timing | str, theirs: Timing | str) -> str:
    if isinstance(ours, str) or isinstance(theirs, str):
        return "our kernels and TensorRT cannot be compared."
    faster = "beat" if ours.median_ms < theirs.median_ms else "do not beat"
    return f"our kernels {faster} TensorRT ({ours.median_ms:.3f} and {theirs.median_ms:.3f} ms, both captured)."
