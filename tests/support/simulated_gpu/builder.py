"""Build a plan for the simulated GPU from one ONNX graph (see `tests.support.simulated_gpu.plan`): nothing is compiled."""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from types import SimpleNamespace

import onnx

from export.tensorrt_build import BuiltPlan, Profile, graph_bytes, require_ranges
from export.tensorrt_parts import Part
from export.tensorrt_plans import describe_plan
from models.bundle.plans import add_plan
from models.runtimes.cuda.tensorrt_library import Messages, TensorRT, TensorRTError
from tests.support.simulated_gpu.plan import ARCHITECTURE, FORMAT_VERSION, PlanFormatError, SimulatedPlan

MAX_BYTES = 2**31 - 1
"""The most that protobuf takes in one file."""


def simulated_builder() -> TensorRT:
    """Return the builder that the plans name; only `SimulatedDevice` has the module that runs them."""
    return TensorRT("tensorrt", SimpleNamespace(__version__=FORMAT_VERSION), Messages(), None)


def build_simulated_part(part: Part, folder: Path) -> BuiltPlan:
    """Write the graph of a part into `folder` and return its plan."""
    graph = folder / f"{part.name}.onnx"
    part.write().save(graph)
    return build_simulated_plan(graph, part.profiles)


def add_simulated_plan(part: Part, folder: Path) -> BuiltPlan:
    """Build the plan of a part and put it into the bundle in `folder`."""
    # Beside the bundle, so that the plan can be renamed into it.
    with tempfile.TemporaryDirectory(prefix="plan-", dir=folder.parent) as scratch:
        built = build_simulated_part(part, Path(scratch))
        (Path(scratch) / "plan").write_bytes(built.content)
        add_plan(folder, describe_plan(simulated_builder(), part, ARCHITECTURE, built.activation_bytes), Path(scratch) / "plan")
    return built


def build_simulated_plan(graph: Path, profiles: Sequence[Profile]) -> BuiltPlan:
    """One file of `graph` and its weights. Raises `TensorRTError` where it is too large for one, or ONNX Runtime refuses it."""
    started, started_processor = time.monotonic(), time.process_time()
    if graph_bytes(graph) > MAX_BYTES:
        raise TensorRTError(f"{graph.name} and its weights are {graph_bytes(graph) / 1e9:.1f} GB, and such a plan holds 2 GB")
    model = onnx.load(graph)
    for profile in profiles:
        require_ranges(model, profile)
    onnx.helper.set_model_props(
        model,
        {"format_version": FORMAT_VERSION, "profiles": json.dumps(profiles), "aliases": json.dumps(_aliases(model))},
    )
    content = model.SerializeToString(deterministic=True)
    try:
        plan = SimulatedPlan(content, threads=1)
    except PlanFormatError as error:
        raise TensorRTError(f"{graph.name} is no plan that runs on a CPU: {error}") from error
    return BuiltPlan(
        content=content,
        build_s=time.monotonic() - started,
        processor_s=time.process_time() - started_processor,
        peak_memory_bytes=getrusage(RUSAGE_SELF).ru_maxrss * 1024,
        activation_bytes=max(map(plan.activation_bytes, range(len(profiles)))),
    )


def _aliases(model: onnx.ModelProto) -> dict[str, str]:
    """Outputs that are an input with a part written anew, by name: a runtime binds both to the same memory."""
    inputs, outputs = ({value.name for value in values} for values in (model.graph.input, model.graph.output))
    scatters = [node for node in model.graph.node if node.op_type == "TensorScatter"]
    return {node.output[0]: node.input[0] for node in scatters if node.output[0] in outputs and node.input[0] in inputs}
