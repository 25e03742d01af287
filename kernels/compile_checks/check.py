"""The checks of a compiled kernel: instructions that it must have, and resources that may not exceed the baseline's."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import triton

from kernels.compile_checks.cases import GROUPS, CompileCase, unaligned_case
from kernels.compile_checks.compile import Compiled, compiled_by
from kernels.gpu_specs import GPU_SPECS, programs_at_once
from kernels.tiles import ARCHITECTURES

BASELINE = Path(__file__).parent / "baseline.json"
PRODUCTS = frozenset({"linear_kernel", "persistent_linear_kernel", "attention_kernel", "scan_kernel"})
INSTRUCTION_ALLOWANCE = 1.05


@dataclass(frozen=True)
class Measured:
    """The kernels of one case, compiled for one architecture."""

    architecture: int
    case: str
    kernels: tuple[Compiled, ...]

    def by_key(self) -> Iterator[tuple[str, Compiled]]:
        """Yield each kernel with its name in the baseline."""
        for kernel in self.kernels:
            yield f"sm_{self.architecture}, {self.case}: {kernel.kernel}", kernel


def measure_case(architecture: int, case: CompileCase) -> Measured:
    """Compile one case for one architecture."""
    return Measured(architecture, case.name, tuple(compiled_by(case.call, architecture)))


def measure_group(architecture: int, group: str) -> list[Measured]:
    """Compile the cases of a group for one architecture."""
    return [measure_case(architecture, case) for case in GROUPS[group](architecture)]


def sample_groups() -> list[tuple[int, str]]:
    """Return each architecture with a group of its own: a third of all, in which every group and architecture is found."""
    return list(zip(ARCHITECTURES, GROUPS, strict=True))


def all_groups() -> list[tuple[int, str]]:
    return [(architecture, group) for architecture in ARCHITECTURES for group in GROUPS]


def measure(groups: Sequence[tuple[int, str]], workers: int) -> list[Measured]:
    """Compile the cases of the groups, in processes of their own: the compiler can bring its process down."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(measure_group, architecture, group) for architecture, group in groups]
        return [measured for task in tasks for measured in task.result()]


def measure_unaligned() -> list[Measured]:
    """Compile the case that must not pass the checks."""
    # The package has the operator under this name, not the module.
    module = import_module("kernels.triton.linear")
    with mock.patch.object(module, "check_rows"):
        return [measure_case(architecture, unaligned_case()) for architecture in ARCHITECTURES]


def numbers(kernel: Compiled) -> dict[str, int]:
    return {
        "registers": kernel.registers, "shared_bytes": kernel.shared_bytes, "instructions": kernel.instructions,
    }  # fmt: skip


def write_baseline(measured: Sequence[Measured]) -> None:
    kernels = {key: numbers(kernel) for each in measured for key, kernel in each.by_key()}
    BASELINE.write_text(json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=1) + "\n")


def read_baseline() -> dict[str, Any]:
    """Return the baseline of the installed compiler. Raises `ValueError` for another compiler's, whose numbers say nothing."""
    baseline: dict[str, Any] = json.loads(BASELINE.read_text())
    if baseline["triton"] != triton.__version__:
        raise ValueError(
            f"the baseline is of triton {baseline['triton']}, installed is {triton.__version__}: look at what"
            " `python -m kernels.compile_checks --write` changes, and commit it"
        )
    return baseline


def violations(measured: Sequence[Measured], baseline: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return what is wrong, a line each; nothing if every check passes."""
    return [
        f"{key}: {complaint}"
        for each in measured
        for key, kernel in each.by_key()
        for complaint in complaints(each.architecture, kernel, baseline.get(key))
    ]


def complaints(architecture: int, kernel: Compiled, before: Mapping[str, int] | None) -> Iterator[str]:
    gpu = GPU_SPECS[architecture]
    if kernel.spills or kernel.stack_bytes:
        yield f"{kernel.spills} instructions spill registers, {kernel.stack_bytes} bytes of stack"
    if kernel.kernel in PRODUCTS:
        if not kernel.opcodes[gpu.tensor_instruction]:
            yield f"no {gpu.tensor_instruction}: the product runs beside this architecture's tensor cores"
        if not any(kernel.opcodes[opcode] for opcode in gpu.async_copies):
            yield f"no {' or '.join(gpu.async_copies)}: nothing is copied while it multiplies"
    if not programs_at_once(gpu, kernel.warps, kernel.registers, kernel.shared_bytes):
        yield f"{kernel.shared_bytes} bytes of shared memory do not fit into {gpu.shared_bytes}"
    if before is None:
        yield "not in the baseline"
        return
    for name, value in numbers(kernel).items():
        allowed = before[name] * (INSTRUCTION_ALLOWANCE if name == "instructions" else 1)
        if value > allowed:
            yield f"{value} {name}, {before[name]} in the baseline"
