"""The reports of the capacity model as Markdown, and its plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.capacity.costs import StageCosts
from loadtest.capacity.levels import Level
from loadtest.support.markdown import conditions, table
from loadtest.support.plots import open_plot

# The aim of the model.
TOLERANCE = 0.15


def describe_costs(costs: StageCosts) -> list[str]:
    """Return the costs as a table of milliseconds."""
    encode = costs.encode
    rows: list[list[Any]] = [
        [
            "encode",
            _ms(encode.call_s),
            ", ".join(f"{_ms(row_s)} for {length_s:g} s" for length_s, row_s in zip(encode.lengths_s, encode.row_s, strict=True)),
        ]
    ]
    for number, decoder in enumerate(costs.decoders):
        per_row = f"{_ms(decoder.prefill_row_s)} per row, {_ms(decoder.prefill_position_s)} per position"
        rows.append([f"decoder {number}, prefill", _ms(decoder.prefill_call_s), per_row])
        per_row = f"{_ms(decoder.decode_row_s)} per row, {_ms(decoder.decode_position_s)} per position"
        rows.append([f"decoder {number}, decode pass", _ms(decoder.decode_call_s), per_row])
    rows.append(["step, beside its stages", _ms(costs.step_s), ""])
    rows.append(["door, per request", _ms(costs.door_s), ""])
    rows.append(["voice detection, on another thread", "", f"{_ms(costs.voice_s)} per second of live audio"])
    note = "measured" if costs.measured else "**predicted by roofline; nothing has confirmed these figures**"
    return [f"{costs.name}: {note}.", "", *table(["stage", "ms per call", "and"], rows), ""]


def describe_levels(levels: Sequence[Level]) -> list[str]:
    """Return simulated levels as a table."""
    rows = [level.row() for level in levels]
    return [*table(list(rows[0]), [list(row.values()) for row in rows]), ""] if rows else []


def plot_levels(systems: Mapping[str, Sequence[Level]], path: Path) -> None:
    """Plot the waits for finals by the number of live sessions, one line for each system."""
    with open_plot(path) as axes:
        for number, (name, levels) in enumerate(systems.items()):
            sessions = [level.mix.sessions for level in levels]
            for percent, style in ((50, "--"), (95, "-")):
                waits = [level.row()[f"final_p{percent}_ms"] for level in levels]
                axes.plot(sessions, waits, style, marker="o", color=f"C{number}", label=f"{name}, p{percent}")
        axes.set(xscale="log", yscale="log", xlabel="live sessions on one engine", ylabel="end of speech to final (ms)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)


def describe_validation(result: dict[str, Any]) -> str:
    """Return predicted against measured as a page."""
    rows = []
    inside = total = 0
    for each in result["rows"]:
        for name, figure in each["figures"].items():
            ratio = figure["ratio"]
            is_inside = ratio is not None and abs(ratio - 1) <= TOLERANCE
            inside, total = inside + is_inside, total + 1
            rows.append([each["mix"], name, figure["predicted"], figure["measured"], ratio, "yes" if is_inside else "no"])
        refused = each["refused"]
        if refused["predicted_per_s"] or refused["measured_per_s"]:
            rows.append([each["mix"], "refused_per_s", refused["predicted_per_s"], refused["measured_per_s"], None, ""])
    head = ["mix", "figure", "predicted", "measured", "predicted / measured", f"within {TOLERANCE:.0%}"]
    return "\n".join(
        [
            "# Capacity model: predicted against measured",
            "",
            *conditions(result["run"] | {"other_cpu_share": result["other_cpu_share"]}),
            f"{inside} of {total} figures are within {TOLERANCE:.0%}. Each mix ran for {result['seconds']:g} s; the costs were "
            "measured before it, with the engine alone.",
            "",
            *table(head, rows),
            "",
        ]
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"
