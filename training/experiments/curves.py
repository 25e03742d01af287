"""Curves of the runs that are there."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.experiments.plan import FAMILIES
from training.experiments.report import Runs, describe_setting


def draw_curves(runs: Runs, path: Path) -> None:
    """Draw the held-out loss against steps, a panel for each thing that was changed."""
    families = {"depth": ["depth"], "subsampling": ["stacking", "uniform"], "encoder": ["encoder"], "seeds": ["seeds"]}
    figure = Figure(figsize=(15, 4), layout="constrained")
    panels = figure.subplots(1, len(families), sharey=True)
    for axes, (name, parts) in zip(panels, families.items(), strict=True):
        _draw_family(axes, runs, parts)
        axes.set(title=name, xlabel="step")
    panels[0].set(ylabel="held-out loss per letter", ylim=(0, None))
    figure.savefig(path, dpi=90)


def _draw_family(axes: Axes, runs: Runs, families: list[str]) -> None:
    for family in families:
        for setting in FAMILIES[family]:
            if setting in runs:
                history = runs[setting]["history"]
                steps, losses = [row["step"] for row in history], [row["loss"] for row in history]
                style = "--" if family == "uniform" or setting.tunes_encoder else "-"
                axes.plot(steps, losses, style, marker=".", label=describe_setting(family, setting))
    if axes.lines:
        axes.legend(fontsize=7)
