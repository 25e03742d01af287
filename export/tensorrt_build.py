"""Build one TensorRT plan from one ONNX graph: every free dimension gets its range, attention its mask, the operator a bar.

Graphs are strongly typed: the plan computes in the types that the file names (`models.graph.writer`, `float_type`).
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import onnx
from tqdm import tqdm

from export.tensorrt_inspect import activation_bytes
from models.protocols import BackendError
from models.runtimes.cuda.gpu import find_gpu
from models.runtimes.cuda.tensorrt_library import TensorRT, TensorRTError
from models.runtimes.onnx.machine import available_memory_bytes

Sizes = tuple[int, int, int]
Profile = Mapping[str, Sizes]
"""Smallest, best and largest size of each free dimension of a graph, by its name."""

MEMORY_BASE_BYTES, MEMORY_FACTOR = 2**30, 4
"""Free memory that a build needs, the second in sizes of its graph: more than any peak in docs/tensorrt_plans.md."""
DISK_FACTOR = 1.5
"""Free disk space for a plan, in sizes of its graph."""


@dataclass(frozen=True)
class BuiltPlan:
    """A plan as TensorRT serialised it, and what it took to read and compile: by the clock, of processors, of memory.

    `peak_memory_bytes` is the most that the process has had so far. `activation_bytes` are the plan's own, on the GPU, 0 where
    the builder did not say.
    """

    content: bytes
    build_s: float
    processor_s: float
    peak_memory_bytes: int
    activation_bytes: int


def build_plan(
    library: TensorRT, graph: Path, profiles: Sequence[Profile], *, gpu: str, timing_cache: Path | None = None
) -> BuiltPlan:
    """Compile `graph` for the architecture `gpu`, with one optimisation profile after the other.

    `timing_cache` is a file that is read where it is there, and written: it makes the next build on this machine fast.
    Raises `TensorRTError` where TensorRT refuses the graph, or cannot build for that GPU here.
    """
    require_target(library, gpu)
    trt = library.module
    library.messages.lines.clear()
    started, started_processor = time.monotonic(), time.process_time()
    builder = trt.Builder(library.logger)
    network = builder.create_network(0)
    model = onnx.load(graph, load_external_data=False)
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(graph)):
        problems = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise TensorRTError(f"TensorRT cannot read {graph.name}: {problems}")
    patch_attention(library, network, attention_nodes(model))

    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # Side streams would save nothing in a chain of layers, and cost signals and waits.
    config.max_aux_streams = 0
    if library.compiles_ahead:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, gpu.upper().replace("_", "")), 0)
    for profile in profiles:
        config.add_optimization_profile(_write_profile(builder, network, model, profile))
    # If it compiles ahead there is nothing to time, and the library warns about a cache.
    timing_cache = None if library.compiles_ahead else timing_cache
    if timing_cache:
        known = timing_cache.read_bytes() if timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    monitor = make_monitor(library)
    config.progress_monitor = monitor
    content = builder.build_serialized_network(network, config)
    monitor.close()
    if content is None:
        reason = library.messages.errors() or "it did not say why"
        raise TensorRTError(f"TensorRT could not build {graph.name} for {gpu}: {reason}")
    if timing_cache:
        timing_cache.parent.mkdir(parents=True, exist_ok=True)
        timing_cache.write_bytes(config.get_timing_cache().serialize())
    return BuiltPlan(
        content=bytes(content),
        build_s=time.monotonic() - started,
        processor_s=time.process_time() - started_processor,
        peak_memory_bytes=getrusage(RUSAGE_SELF).ru_maxrss * 1024,
        activation_bytes=max(activation_bytes(library.messages), default=0),
    )


def require_target(library: TensorRT, gpu: str) -> None:
    """Refuse to build for a GPU that `library` cannot compile for on this machine. Raises `TensorRTError`."""
    if library.compiles_ahead:
        if gpu not in library.targets():
            known = ", ".join(library.targets())
            raise TensorRTError(f"{library.builder} {library.version} does not compile for {gpu}, only for {known}")
        return
    try:
        present = find_gpu()
    except BackendError as error:
        raise TensorRTError(f"{library.builder} builds for the GPU in the machine, and {error}") from error
    if present.architecture != gpu:
        raise TensorRTError(
            f"{library.builder} builds for the GPU in the machine, which is a {present.name} ({present.architecture}): "
            f"build the plan for {gpu} on a machine that has one"
        )


def require_room(weight_bytes: int, folder: Path) -> None:
    """Refuse a build that this machine's memory or `folder`'s disk cannot hold. Raises `TensorRTError`."""
    memory, free_memory = MEMORY_BASE_BYTES + MEMORY_FACTOR * weight_bytes, available_memory_bytes()
    if free_memory < memory:
        raise TensorRTError(
            f"building from {weight_bytes / 1e9:.1f} GB of weights needs {memory / 1e9:.1f} GB of memory and "
            f"{free_memory / 1e9:.1f} GB are available: stop what uses it, or build on a machine with more"
        )
    disk, free_disk = DISK_FACTOR * weight_bytes, shutil.disk_usage(folder).free
    if free_disk < disk:
        raise TensorRTError(f"{folder} has {free_disk / 1e9:.1f} GB free and the plan needs {disk / 1e9:.1f} GB: free some")


def require_ranges(model: onnx.ModelProto, profile: Profile) -> None:
    """Raises `TensorRTError` where a free dimension of an input has no range in the profile."""
    sizes = [each for value in model.graph.input for each in value.type.tensor_type.shape.dim]
    missing = {each.dim_param for each in sizes if each.dim_param} - profile.keys()
    if missing:
        raise TensorRTError(f"the profile gives no range for {', '.join(sorted(missing))}")


def graph_bytes(graph: Path) -> int:
    """Size of an ONNX file with its external data."""
    return sum(path.stat().st_size for path in (graph, graph.with_name(graph.name + ".data")) if path.exists())


def _write_profile(builder: Any, network: Any, model: onnx.ModelProto, profile: Profile) -> Any:
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    free = {name: [each.dim_param or each.dim_value for each in shape] for name, shape in shapes.items()}
    require_ranges(model, profile)
    written = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        if any(isinstance(size, str) for size in free[name]):
            ranges = [profile[size] if isinstance(size, str) else (size, size, size) for size in free[name]]
            written.set_shape(name, *zip(*ranges, strict=True))
    return written


def make_monitor(library: TensorRT) -> Any:
    """Return a progress monitor to give to the builder's configuration. It has to outlive the build; `close` removes its bar."""
    base: Any = library.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        """One bar for the outermost phase, with the name of the phase that began last; called from several threads."""

        def __init__(self) -> None:
            base.__init__(self)
            self.outermost = ""
            self.bar: tqdm[Any] | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase:
                if self.bar:
                    self.bar.set_postfix_str(phase_name, refresh=False)
                return
            self.close()
            self.outermost = phase_name
            self.bar = tqdm(total=num_steps, desc=phase_name, unit="step", leave=False)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self.bar and phase_name == self.outermost:
                self.bar.update(step + 1 - self.bar.n)
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self.outermost:
                self.close()

        def close(self) -> None:
            if self.bar:
                self.bar.close()
            self.bar = None

    return Monitor()


LENGTHS_INPUT = 6
"""The place at which ONNX's `Attention` takes the filled length of each row's keys."""


@dataclass(frozen=True)
class AttentionNode:
    """One `Attention` of an ONNX graph; `lengths` names its input of filled lengths, None where every key is to be seen."""

    name: str
    lengths: str | None
    causal: bool


def attention_nodes(model: onnx.ModelProto) -> list[AttentionNode]:
    """Return the graph's attentions, in its order."""
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Attention":
            lengths = node.input[LENGTHS_INPUT] if len(node.input) > LENGTHS_INPUT else ""
            causal = any(attribute.name == "is_causal" and attribute.i for attribute in node.attribute)
            nodes.append(AttentionNode(node.name, lengths or None, causal))
    return nodes


def network_attentions(library: TensorRT, network: Any) -> Iterator[Any]:
    """Yield the network's `IAttention`s, in its order."""
    trt = library.module
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # get_layer gives the base class, which has no way to the attention.
            layer.__class__ = trt.IAttentionInputLayer
            yield layer.attention


def patch_attention(library: TensorRT, network: Any, nodes: list[AttentionNode]) -> None:
    """Set mask and lengths of every attention as its ONNX node says, `nodes` being those of the graph that was parsed.

    Raises `TensorRTError` where parser and graph do not have the same attentions.
    """
    trt = library.module
    inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    attentions = list(network_attentions(library, network))
    if len(attentions) != len(nodes):
        raise TensorRTError(f"the graph has {len(nodes)} attentions and TensorRT parsed {len(attentions)}: its parser changed")
    # TensorRT takes lengths in 32 bits, ONNX in 64.
    lengths = {
        name: network.add_cast(inputs[name], trt.int32).get_output(0)
        for name in dict.fromkeys(node.lengths for node in nodes if node.lengths)
    }
    for attention, node in zip(attentions, nodes, strict=True):
        if node.lengths:
            attention.key_value_lengths = lengths[node.lengths]
        attention.causal_kind = trt.CausalMaskKind.LOWER_RIGHT if node.causal else trt.CausalMaskKind.NONE
        # A build fails where no fused kernel takes the attention, rather than giving a slow plan.
        attention.decomposable = False
