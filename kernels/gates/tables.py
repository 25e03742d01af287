"""The gates' findings and what they predict, as Markdown tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from kernels.cards import CARDS, Card, programs_at_once
from kernels.gates.check import Measured
from kernels.markdown import table

LAUNCH_S = 1.5e-6


@dataclass(frozen=True)
class Prediction:
    """Seconds of one operator by a model as plain as this: nothing is cached, each multiprocessor has its share of bandwidth
    and arithmetic, all wait for the last, and a kernel costs 1.5 us more within a captured graph.
    """

    memory_s: float
    compute_s: float
    launch_s: float

    @property
    def total_s(self) -> float:
        return max(self.memory_s, self.compute_s) + self.launch_s

    @property
    def bound(self) -> str:
        return max((self.memory_s, "memory"), (self.compute_s, "arithmetic"), (self.launch_s, "launch"))[1]


def predict(card: Card, measured: Measured) -> Prediction:
    main = measured.kernels[0]
    pieces = measured.tiles or main.programs
    busy = min(1.0, pieces / card.multiprocessors)
    full = pieces / (card.multiprocessors * ceil(pieces / card.multiprocessors))
    return Prediction(
        measured.bytes_moved / (card.bytes_per_s * busy),
        measured.flops / (card.tensor_flops * full),
        LAUNCH_S * len(measured.kernels),
    )


def gate_table(measured: Sequence[Measured]) -> str:
    rows = []
    for each in measured:
        card = CARDS[each.architecture]
        for kernel in each.kernels:
            copies = " ".join(f"{name} {kernel.opcodes[name]}" for name in card.async_copies if kernel.opcodes[name])
            tensor = kernel.opcodes[card.tensor_instruction]
            at_once = programs_at_once(card, kernel.warps, kernel.registers, kernel.shared_bytes)
            rows.append([
                f"sm_{each.architecture}", each.case, f"`{kernel.kernel}`", kernel.programs, kernel.warps, kernel.registers,
                kernel.spills, f"{kernel.shared_bytes / 1024:.0f}", f"{card.tensor_instruction} {tensor}" if tensor else "",
                copies, kernel.instructions, at_once,
            ])  # fmt: skip
    heading = [
        "target", "operator", "kernel", "programs", "warps", "registers", "spills", "shared KiB", "tensor cores", "async copies",
        "instructions", "programs a multiprocessor",
    ]  # fmt: skip
    return table(heading, rows)


def roofline_table(measured: Sequence[Measured], architecture: int) -> str:
    """Each operator of a pass of the adapter, and the pass."""
    card, rows = CARDS[architecture], []
    passes: dict[str, list[tuple[Measured, Prediction]]] = {}
    for each in measured:
        if each.architecture != architecture or not each.times:
            continue
        prediction = predict(card, each)
        passes.setdefault(each.case.rpartition(", ")[2], []).append((each, prediction))
        rows.append([
            each.case, each.times, f"{each.flops / 1e9:.3f}", f"{each.bytes_moved / 1e6:.2f}",
            f"{prediction.memory_s * 1e6:.1f}", f"{prediction.compute_s * 1e6:.1f}", f"{prediction.launch_s * 1e6:.1f}",
            f"{prediction.total_s * 1e6:.1f}", prediction.bound,
        ])  # fmt: skip
    for name, parts in passes.items():
        kernels = sum(each.times * len(each.kernels) for each, _ in parts)
        flops, moved = (sum(each.times * getattr(each, field) for each, _ in parts) for field in ("flops", "bytes_moved"))
        memory, compute, launch, total = (
            1e6 * sum(each.times * getattr(prediction, field) for each, prediction in parts)
            for field in ("memory_s", "compute_s", "launch_s", "total_s")
        )
        rows.append([
            f"**whole pass, {name}**", f"{kernels} kernels", f"{flops / 1e9:.3f}", f"{moved / 1e6:.2f}",
            f"{memory:.1f}", f"{compute:.1f}", f"{launch:.1f}", f"**{total:.1f}**", "",
        ])  # fmt: skip
    heading = ["operator", "times", "GFLOP", "MB", "memory µs", "arithmetic µs", "launch µs", "predicted µs", "bound by"]
    return table(heading, rows)
