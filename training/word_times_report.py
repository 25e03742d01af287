"""The errors of word times, in figures, as a table and as a plot."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from export.markdown import table
from training.evaluate import ENGLISH_SETS

Bound = Literal["start_s", "end_s"]

OURS, PEER = "Thinbridge", "faster-whisper base"
BOUNDS: tuple[Bound, Bound] = ("start_s", "end_s")
KINDS = {
    "flite": "flite, exact",
    "espeak-ng": "espeak-ng, exact",
    "joined": "recordings joined, exact at their ends",
    **{name: f"{name}, by forced alignment" for name in ENGLISH_SETS},
}


@dataclass(frozen=True)
class Error:
    """How much too late one system has one bound of one word."""

    kind: str
    system: str
    bound: Bound
    late_s: float


def figures(errors: Iterable[Error]) -> dict[str, float]:
    late_ms = [1000 * error.late_s for error in errors]
    median, p95 = np.percentile(np.abs(late_ms), [50, 95])
    return {"words": len(late_ms), "median_ms": round(median), "p95_ms": round(p95), "bias_ms": round(np.median(late_ms))}


def summary(errors: Sequence[Error]) -> dict[str, Any]:
    """Return the figures by kind, system and bound."""
    return {
        f"{kind} / {system} / {bound}": figures(chosen)
        for kind in dict.fromkeys(error.kind for error in errors)
        for system in dict.fromkeys(error.system for error in errors)
        for bound in BOUNDS
        if (chosen := [error for error in errors if (error.kind, error.system, error.bound) == (kind, system, bound)])
    }


def markdown(errors: Sequence[Error]) -> str:
    """Return the medians and 95th percentiles as a table."""
    rows, found = [], summary(errors)
    for kind, name in KINDS.items():
        cells = [found.get(f"{kind} / {system} / {bound}") for system in (OURS, PEER) for bound in BOUNDS]
        known = [cell for cell in cells if cell]
        if len(known) == len(cells):
            rows.append([name, known[0]["words"], *(f"{cell['median_ms']}, {cell['p95_ms']}" for cell in known)])
    return table(["speech", "words", f"{OURS}: starts", "ends", f"{PEER}: starts", "ends"], rows)


def plot(errors: Sequence[Error], path: Path) -> None:
    """Plot the share of words by the size of their errors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [kind for kind in KINDS if any(error.kind == kind for error in errors)]
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(2.6 * len(kinds), 3), sharey=True, layout="constrained")
    for axis, kind in zip(axes, kinds, strict=True):
        for system, colour in ((OURS, "C0"), (PEER, "C1")):
            for bound, style in zip(BOUNDS, ("-", ":"), strict=True):
                sizes_ms = np.sort([1000 * abs(e.late_s) for e in errors if (e.kind, e.system, e.bound) == (kind, system, bound)])
                axis.plot(sizes_ms, np.linspace(0, 100, len(sizes_ms)), style, color=colour, label=f"{system}, {bound[:-2]}")
        axis.set(title=kind, xlim=(0, 300), xlabel="ms at most")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("% of words")
    axes[0].legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=110)
