"""The gates: what a compiled kernel must show, and what it may not use more of than the baseline."""

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

from kernels.cards import CARDS, programs_at_once
from kernels.gates.cases import GROUPS, unaligned_case
from kernels.gates.compile import Compiled, compiled_by
from kernels.tiles import ARCHITECTURES

BASELINE = Path(__file__).parent / "baseline.json"
PRODUCTS = frozenset({"linear_kernel", "persistent_linear_kernel", "attention_kernel", "scan_kernel"})
INSTRUCTION_ALLOWANCE = 1.05


@dataclass(frozen=True)
class Measured:
    """The kernels of one case on one architecture. `tiles` is None where the programs are the pieces of work."""

    architecture: int
    case: str
    flops: float
    bytes_moved: float
    times: int
    tiles: int | None
    kernels: tuple[Compiled, ...]

    def by_key(self) -> Iterator[tuple[str, Compiled]]:
        """Each kernel with its name in the baseline."""
        for kernel in self.kernels:
            yield f"sm_{self.architecture}, {self.case}: {kernel.kernel}", kernel


def measure_group(architecture: int, group: str) -> list[Measured]:
    return [
        Measured(architecture, case.name, case.flops, case.bytes_moved, case.times, case.tiles,
                 tuple(compiled_by(case.call, architecture)))
        for case in GROUPS[group](architecture)
    ]  # fmt: skip


def measure(workers: int) -> list[Measured]:
    """Compile every case for every architecture, in processes of their own: the compiler can bring its process down."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(measure_group, architecture, group) for architecture in ARCHITECTURES for group in GROUPS]
        return [measured for task in tasks for measured in task.result()]


def measure_unaligned() -> list[Measured]:
    # By its name the package gives the operator, not the module.
    module = import_module("kernels.fused.linear")
    with mock.patch.object(module, "check_rows"):
        return [
            Measured(architecture, case.name, case.flops, case.bytes_moved, 0, None, tuple(compiled_by(case.call, architecture)))
            for architecture in ARCHITECTURES
            for case in [unaligned_case(architecture)]
        ]


def numbers(kernel: Compiled) -> dict[str, int]:
    return {
        "registers": kernel.registers, "shared_bytes": kernel.shared_bytes, "instructions": kernel.instructions,
    }  # fmt: skip


def write_baseline(measured: Sequence[Measured]) -> None:
    kernels = {key: numbers(kernel) for each in measured for key, kernel in each.by_key()}
    BASELINE.write_text(json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=1) + "\n")


def read_baseline() -> dict[str, Any]:
    """Of the compiler that is installed; another one's numbers say nothing."""
    baseline: dict[str, Any] = json.loads(BASELINE.read_text())
    if baseline["triton"] != triton.__version__:
        raise ValueError(
            f"the baseline is of triton {baseline['triton']}, installed is {triton.__version__}: look at what"
            " `python -m kernels.gates --write` changes, and commit it"
        )
    return baseline


def violations(measured: Sequence[Measured], baseline: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What is wrong, a line each; nothing if every gate holds."""
    return [
        f"{key}: {complaint}"
        for each in measured
        for key, kernel in each.by_key()
        for complaint in complaints(each.architecture, kernel, baseline.get(key))
    ]


def complaints(architecture: int, kernel: Compiled, before: Mapping[str, int] | None) -> Iterator[str]:
    card = CARDS[architecture]
    if kernel.spills or kernel.stack_bytes:
        yield f"{kernel.spills} instructions spill registers, {kernel.stack_bytes} bytes of stack"
    if kernel.kernel in PRODUCTS:
        if not kernel.opcodes[card.tensor_instruction]:
            yield f"no {card.tensor_instruction}: the product runs beside this architecture's tensor cores"
        if not any(kernel.opcodes[opcode] for opcode in card.async_copies):
            yield f"no {' or '.join(card.async_copies)}: nothing is copied while it multiplies"
    if not programs_at_once(card, kernel.warps, kernel.registers, kernel.shared_bytes):
        yield f"{kernel.shared_bytes} bytes of shared memory do not fit into {card.shared_bytes}"
    if before is None:
        yield "not in the baseline"
        return
    for name, value in numbers(kernel).items():
        allowed = before[name] * (INSTRUCTION_ALLOWANCE if name == "instructions" else 1)
        if value > allowed:
            yield f"{value} {name}, {before[name]} in the baseline"
