"""Compile the kernels that a call of an operator would launch, for a GPU that need not be present.

The operators are called as in serving, on tensors without memory, so that what is compiled is what would run: the same tiles,
the same specialisation on alignment. Nothing is launched.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels.gpu_specs import GPU_SPECS

INSTRUCTION = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]+)(?:\.[\w.]+)?\b", re.MULTILINE)
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True)
class Compiled:
    """One kernel as it would be launched. `registers` are a thread's, `opcodes` its instructions by name."""

    kernel: str
    programs: int
    warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    opcodes: Counter[str]

    @property
    def instructions(self) -> int:
        return self.opcodes.total()

    @property
    def spills(self) -> int:
        return self.opcodes["STL"] + self.opcodes["LDL"]


class CompileOnlyDriver:
    """In the place of Triton's driver: answers for a gpu that is not here."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        properties = {"multiprocessor_count": GPU_SPECS[architecture].multiprocessors}
        self.utils = SimpleNamespace(get_device_properties=lambda _device: properties)

    def get_current_device(self) -> int:
        """Triton keeps compiled kernels by device: one for each architecture."""
        return self.architecture

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def compiled_by(call: Callable[[], object], architecture: int) -> list[Compiled]:
    """Return the kernels that `call` would launch on a GPU of this architecture, in order. Its tensors are on torch's "meta"
    device."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("unset TRITON_INTERPRET: the interpreter compiles nothing")
    launches: list[Compiled] = []
    with no_launch(architecture, lambda grid, kernel: launches.append(examine(grid, kernel))):
        call()
    return launches


@contextmanager
def no_launch(architecture: int, seen: Callable[[tuple[int, ...], Any], None]) -> Iterator[None]:
    compile_and_run = JITFunction.run

    def run(kernel: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:  # noqa: ARG001
        seen(grid, compile_and_run(kernel, *arguments, grid=grid, warmup=True, **options))

    active = triton.runtime.driver
    with mock.patch.object(JITFunction, "run", run), mock.patch.object(active, "_active", CompileOnlyDriver(architecture)):
        yield


def examine(grid: tuple[int, ...], kernel: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = output_of(triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        listing = output_of(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
    registers, stack = (int(number) for number in next(RESOURCES.finditer(usage)).groups())
    programs = 1
    for size in grid:
        programs *= size
    opcodes = Counter(INSTRUCTION.findall(listing))
    return Compiled(kernel.name, programs, kernel.metadata.num_warps, registers, stack, kernel.metadata.shared, opcodes)


def output_of(tool: str, *arguments: str) -> str:
    return subprocess.run([str(Path(tool)), *arguments], check=True, capture_output=True, text=True).stdout
