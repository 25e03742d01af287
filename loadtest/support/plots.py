"""Memory over time as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.support.footprint import Reading


def plot_memory(watches: Mapping[str, Sequence[Reading]], path: Path, title: str, note: str) -> None:
    """One line for each series of readings, all processes together."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.5, 4.5), layout="constrained")
    for name, readings in watches.items():
        axes.plot(
            [reading.moment_s - readings[0].moment_s for reading in readings],
            [reading.total_mib for reading in readings],
            label=name,
        )
    axes.set(title=title, xlabel="time (s)", ylabel="resident memory of the server's processes (MiB)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.supxlabel(note, fontsize=7, color="grey")
    figure.savefig(path, dpi=110)
    plt.close(figure)
