"""Can attention over rows that lie one after the other, without padding, be built here? Nothing depends on it yet.

TensorRT 11 has a layout for it (`PACKED_NHD`); TensorRT-RTX has no kernel of it. A plan that takes it would need no padding in
a batch of prompts.
"""

import platform
from collections.abc import Iterator
from typing import Any

from export.gpu_check.report import Findings, Table
from export.gpu_check.workbench import Workbench
from models.runtimes.cuda.tensorrt_library import TensorRT, TensorRTError, load_tensorrt

HEADS, KEY_HEADS, HEAD_SIZE, ROWS, POSITIONS = 9, 3, 64, 8, 512
AHEAD_TARGET = "sm_120"
"""What TensorRT-RTX is asked for, where there is no GPU: the newest that it compiles for."""


def check_packed_attention(bench: Workbench) -> Findings:
    """What the builder says. It may refuse: that is a finding, no failure."""
    if bench.device.tensorrt.builder != "simulated":
        rows = [_attempt(bench.device.tensorrt, bench.device.gpu.architecture)]
        note = "Built by the library and for the GPU that the plans are for."
    elif platform.machine() != "x86_64":
        return Findings(notes=("Not tried: TensorRT-RTX has no package for this processor.",))
    else:
        rows = [_attempt(load_tensorrt("tensorrt_rtx"), AHEAD_TARGET)]
        note = "The simulated device has no builder of networks: TensorRT-RTX was asked."
    heading = ("library", "GPU", "packed attention")
    return Findings((Table("What was said to packed queries, keys and values", heading, tuple(rows)),), (note,))


def _attempt(library: TensorRT, gpu: str) -> tuple[str, str, str]:
    try:
        size = build_packed_attention(library, gpu)
        answer = f"builds, {size / 1e3:.0f} kB"
    except TensorRTError as error:
        answer = f"refused: {error}"
    return f"{library.builder} {library.version}", gpu, answer


def build_packed_attention(library: TensorRT, gpu: str) -> int:
    """Bytes of a plan of one attention, causal, over `ROWS` packed rows at the most. Raises `TensorRTError`."""
    trt = library.module
    if not hasattr(trt, "AttentionIOForm"):
        raise TensorRTError(f"{library.builder} {library.version} has no layouts of attention")
    library.messages.lines.clear()
    builder = trt.Builder(library.logger)
    network = builder.create_network(0)
    query, key, value = (
        network.add_input(name, trt.bfloat16, (-1, heads, HEAD_SIZE))
        for name, heads in (("query", HEADS), ("key", KEY_HEADS), ("value", KEY_HEADS))
    )
    # As `boundaries` of the adapter's kernels: where each row begins, and where the last one ends.
    boundaries = network.add_input("boundaries", trt.int32, (-1,))
    attention = network.add_attention_v2(query, key, value, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.LOWER_RIGHT)
    if attention is None:
        raise TensorRTError(f"it has no such layer: {library.messages.errors()}")
    attention.query_form = attention.key_value_form = trt.AttentionIOForm.PACKED_NHD
    attention.query_lengths = attention.key_value_lengths = boundaries
    network.mark_output(attention.get_output(0))
    config = builder.create_builder_config()
    if library.compiles_ahead:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, gpu.upper().replace("_", "")), 0)
    profile = builder.create_optimization_profile()
    for name, *shapes in _ranges():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    content: Any = builder.build_serialized_network(network, config)
    if content is None:
        raise TensorRTError(library.messages.errors() or "it did not say why")
    return len(bytes(content))


def _ranges() -> Iterator[tuple[Any, ...]]:
    """Smallest, best and largest shape of each input."""
    for name, heads in (("query", HEADS), ("key", KEY_HEADS), ("value", KEY_HEADS)):
        yield name, *((positions, heads, HEAD_SIZE) for positions in (1, POSITIONS // 2, POSITIONS))
    yield "boundaries", *((rows + 1,) for rows in (1, ROWS, ROWS))
