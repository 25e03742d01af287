"""The times of the adapter on a GPU, by our kernels and by what they have to beat."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.gpu_bench.timing import Scale, Section, Timing, load_plan, time_enqueued
from kernels import reference
from kernels import triton as triton_operators
from kernels.adapter.forward import AdapterFrames, Operators, adapt
from kernels.adapter.weights import AdapterWeights, map_tensors, pack_adapter
from models.assemble import draft_table_path
from models.bundle.io import Bundle
from models.projectors.subsample import read_adapter
from models.runtimes.cuda.device import Device, capture_launched, upload
from models.runtimes.cuda.onnx_session import open_device_session
from models.runtimes.cuda.plan import PlanContext

FLOAT = torch.bfloat16


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
