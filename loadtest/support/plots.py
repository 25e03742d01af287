"""Pictures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtest.support.footprint import Reading


@contextmanager
def open_plot(
    path: Path, *, rows: int = 1, columns: int = 1, size: tuple[float, float] = (8.5, 5), note: str = ""
) -> Iterator[Any]:
    """Yield the axes of a picture, which is written to `path` at the end with a `note` below; several axes are an array.

    `size` is in inches. Axes above each other share what is below.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=rows > 1, layout="constrained")
    yield axes
    if note:
        figure.supxlabel(note, fontsize=7, color="grey")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def describe_conditions(result: Mapping[str, Any]) -> str:
    """Return a note for a picture: processor, day, and whether the run is void."""
    return f"{result['machine'].split(',')[0]}, {result['date'][:10]}" + (" - VOID" if result.get("void") else "")


def plot_memory(watches: Mapping[str, Sequence[Reading]], path: Path, title: str, note: str) -> None:
    """Draw one line for each series of readings, all processes together."""
    with open_plot(path, size=(8.5, 4.5), note=note) as axes:
        for name, readings in watches.items():
            seconds = [reading.moment_s - readings[0].moment_s for reading in readings]
            axes.plot(seconds, [reading.total_mib for reading in readings], label=name)
        axes.set(title=title, xlabel="time (s)", ylabel="anonymous memory of the server's processes (MiB)", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
