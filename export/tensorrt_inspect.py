"""The contents of a plan, read from the builder's own list of kernels: no GPU is needed to count them.

The names of kernels are the compiler's, and another version may have others: what is asked of them here is their number and
whether attention is one kernel.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mode

from models.runtimes.cuda.tensorrt_library import Messages, TensorRT, TensorRTError

LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: ", re.MULTILINE)
PROFILE = re.compile(r"_myl(\d+)_\d+$")
FUSED_ATTENTION = re.compile(r"_ge(?:mm|mv)_mha_v\d")
NOT_KERNELS = ("shape_call",)
WAITING = ("signal", "wait")


@dataclass(frozen=True)
class Kernel:
    """One entry of the list: a kernel that a step launches, or bookkeeping (`shape_call`, `signal`, `wait`)."""

    name: str
    kind: str


@dataclass(frozen=True)
class ProfileReport:
    """One optimisation profile: what a step launches, and the memory for what is between its kernels.

    `attentions` are the places of the fused attentions among the `kernels`. `waits` are signals between streams.
    """

    kernels: int
    attentions: tuple[int, ...]
    waits: int
    activation_bytes: int

    def kernels_per_layer(self) -> int:
        """Kernels from a layer's attention to the next layer's, as most layers have them: the first has what is done once.

        Raises `StatisticsError` where there is but one layer.
        """
        return mode(after - before for before, after in pairwise(self.attentions))


@dataclass(frozen=True)
class PlanReport:
    """A built plan. `weight_bytes` are stored once for all profiles."""

    profiles: tuple[ProfileReport, ...]
    weight_bytes: int
    plan_bytes: int


def inspect_plan(library: TensorRT, content: bytes) -> PlanReport:
    """Return the contents of the plan that `library` built last.

    Raises `TensorRTError` if they cannot be read; the plan may be good.
    """
    activations = activation_bytes(library.messages)
    kernels = read_kernels(_list_kernels(library, content))
    profiles = tuple(
        _read_profile([kernel for kernel in kernels if _profile_of(kernel) == index], activation)
        for index, activation in enumerate(activations)
    )
    return PlanReport(profiles, max(_figures(library.messages, "Total Weights Memory"), default=0), len(content))


def activation_bytes(messages: Messages) -> list[int]:
    """Return the memory between the kernels of each profile of the last plan; none where the log has another form."""
    return _figures(messages, "Total Activation Memory")


def read_kernels(text: str) -> list[Kernel]:
    """Return the entries of a list of kernels, one a line. Raises `TensorRTError` where there are none."""
    kernels = [Kernel(match["name"], match["kind"]) for match in LAYER.finditer(text)]
    if not kernels:
        raise TensorRTError("the builder gave no list of kernels that can be read")
    return kernels


def _list_kernels(library: TensorRT, content: bytes) -> str:
    """Return the list from the log, where TensorRT-RTX writes one, else from the engine's inspector, which takes the GPU."""
    lists = [text for _, text in library.messages.lines if text.startswith("Layers:")]
    if lists or library.compiles_ahead:
        return "".join(lists[-1:])
    trt = library.module
    engine = trt.Runtime(library.logger).deserialize_cuda_engine(content)
    if engine is None:
        raise TensorRTError(f"the plan cannot be loaded to list its kernels: {library.messages.errors()}")
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE))


def _read_profile(entries: Sequence[Kernel], activation_bytes: int) -> ProfileReport:
    kernels = [each for each in entries if each.kind not in (*WAITING, *NOT_KERNELS)]
    return ProfileReport(
        kernels=len(kernels),
        attentions=tuple(place for place, each in enumerate(kernels) if FUSED_ATTENTION.search(each.name)),
        waits=sum(each.kind in WAITING for each in entries),
        activation_bytes=activation_bytes,
    )


def _profile_of(kernel: Kernel) -> int:
    """Kernels are numbered within their profile: `NAME_myl1_17` is one of the second's."""
    match = PROFILE.search(kernel.name)
    if match is None:
        raise TensorRTError(f"the kernel {kernel.name} does not say which profile it is of: the builder's log has another form")
    return int(match[1])


def _figures(messages: Messages, name: str) -> list[int]:
    found = (re.match(rf"{name}: (\d+) bytes", text) for _, text in messages.lines)
    return [int(match[1]) for match in found if match]
