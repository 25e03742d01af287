"""Plots of a benchmark's result."""

from pathlib import Path
from typing import Any

from loadtest.support.plots import describe_conditions, open_plot

SHOWN = ("features_ms", "queue_ms", "encode_ms", "adapter_ms", "prefill_ms", "decode_ms", "overhead_ms")


def write_plots(result: dict[str, Any], folder: Path) -> None:
    """latency.png, stages.png and throughput.png."""
    note = f"{describe_conditions(result)}, {result['threads']} threads"
    for name, draw, columns in (("latency", _latency, 1), ("stages", _stages, 1), ("throughput", _throughput, 2)):
        with open_plot(folder / f"{name}.png", columns=columns, size=(8.5 if columns == 1 else 11, 5), note=note) as axes:
            draw(axes, result)


def _latency(axes: Any, result: dict[str, Any]) -> None:
    for number, system in enumerate(dict.fromkeys(row["system"] for row in result["latency"])):
        rows = sorted((row for row in result["latency"] if row["system"] == system), key=lambda row: float(row["length_s"]))
        middle = [row["p50_ms"] for row in rows]
        up_to_p95 = [[0] * len(rows), [max(0, row["p95_ms"] - row["p50_ms"]) for row in rows]]
        style = {"marker": "o", "capsize": 3, "linestyle": "-" if system.startswith("Thinbridge") else "--"}
        axes.errorbar([row["length_s"] for row in rows], middle, yerr=up_to_p95, label=system, color=f"C{number}", **style)
    lengths = sorted({row["length_s"] for row in result["latency"]})
    axes.set(xscale="log", yscale="log", xlabel="audio (s)", ylabel="request to whole text (ms)")
    axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
    axes.minorticks_off()
    axes.set_yticks(
        [50, 100, 200, 500, 1000, 2000, 5000, 10000], ["50", "100", "200", "500", "1 000", "2 000", "5 000", "10 000"]
    )
    axes.set_title("Latency, one request at a time: p50, whisker to p95")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _stages(axes: Any, result: dict[str, Any]) -> None:
    rows = result["stages"]
    places = range(len(rows))
    below = [0.0] * len(rows)
    for name in SHOWN:
        heights = [row[name] for row in rows]
        axes.bar(places, heights, 0.6, bottom=below, label=name.removesuffix("_ms"))
        below = [bottom + height for bottom, height in zip(below, heights, strict=True)]
    axes.set_xticks(list(places), [f"{row['length_s']:g} s" for row in rows])
    axes.set(xlabel="audio", ylabel="median time (ms)", title="Thinbridge with exact drafts: where the time goes")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)


def _throughput(axes: Any, result: dict[str, Any]) -> None:
    levels = result["throughput"]
    clients = [level["concurrency"] for level in levels]
    left, right = axes
    left.plot(clients, [level["requests_per_s"] for level in levels], marker="o", label="Thinbridge")
    batch = result["faster_whisper_batch"]
    left.axhline(batch["requests_per_s"], color="C1", linestyle="--", label=f"faster-whisper, {batch['clips']} in one batch")
    left.set(ylabel="requests per second", title="Throughput on 5 s clips", ylim=(0, None))
    measured = [level for level in levels if "p50_ms" in level]
    for key in ("p50_ms", "p95_ms"):
        right.plot([level["concurrency"] for level in measured], [level[key] for level in measured], marker="o", label=key[:3])
    right.set(ylabel="latency (ms)", title="Latency under load", ylim=(0, None))
    for each in axes:
        each.set_xscale("log", base=2)
        each.set_xticks(clients, [str(client) for client in clients])
        each.set_xlabel("clients, each waiting for its answer")
        each.grid(alpha=0.3)
        each.legend(fontsize=8)
