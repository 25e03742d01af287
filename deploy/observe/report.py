"""The values of all queries as a table, and the panels of the dashboards as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.observe.prometheus import Series
from deploy.observe.queries import Query
from loadtest.support.markdown import conditions, table

SHOWN_LABELS = 4
COLUMNS = 3


def values_text(values: Mapping[str, float]) -> str:
    """Return the values of a query in a few words, the first labels where there are many."""
    shown = [f"{f'{labels}: ' if labels else ''}{value:.4g}" for labels, value in list(values.items())[:SHOWN_LABELS]]
    more = len(values) - len(shown)
    return "; ".join(shown) + (f"; {more} more" if more > 0 else "")


def without_value(found: Sequence[tuple[Query, Mapping[str, float]]]) -> list[Query]:
    """Return the queries that gave no value although this server has their metrics."""
    return [query for query, values in found if not values and not query.is_about_several_gpus]


def markdown(
    result: Mapping[str, Any], found: Sequence[tuple[Query, Mapping[str, float]]], fired: Sequence[str], picture: str
) -> str:
    """Return the whole report."""
    lines = [
        "# Every query of the dashboards and alerts, during a load run",
        "",
        *conditions(dict(result)),
        f"{result['seconds']:g} s of load on the default model: {result['load']}. Prometheus {result['prometheus']} scraped "
        f"every {result['period']}; rates are over {result['rate_interval']}. {_count(found)}",
        "",
        *(f"- Load generator: {complaint}" for complaint in result["complaints"]),
        "",
        f"Then the engine's process was killed (`kill -9`). Alerts that fired within {result['alert_wait_s']:g} s: "
        f"{', '.join(fired) or 'none'}.",
        "",
        f"![The dashboards' queries, plotted]({picture})",
        "",
        "Not Grafana: the same queries, plotted by `python -m deploy.observe`.",
        "",
        *table(
            ["dashboard or file", "panel or rule", "line", "value"],
            [
                [query.source, query.title, query.legend, values_text(values) or "only with several GPUs"]
                for query, values in found
            ],
        ),
        "",
    ]
    return "\n".join(lines)


def _count(found: Sequence[tuple[Query, Mapping[str, float]]]) -> str:
    answered = sum(bool(values) for _, values in found)
    text = f"{len(found)} queries, {answered} of them with a value."
    if missing := without_value(found):
        return f"{text} **Without a value: {', '.join(sorted({query.title for query in missing}))}.**"
    if answered < len(found):
        text += " The others are about several GPUs in one server, which this machine has not."
    return text


def plot_panels(panels: Mapping[tuple[str, str], Sequence[tuple[str, Series]]], path: Path, note: str) -> None:
    """Plot one small diagram for each panel, keyed by its title and unit; a panel is lines of a legend and its series."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = math.ceil(len(panels) / COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(5.2 * COLUMNS, 2.6 * rows), layout="constrained", squeeze=False)
    for axes, ((title, unit), lines) in zip(grid.flat, panels.items(), strict=False):
        for legend, series in lines:
            for labels, points in series:
                known = [(moment, value) for moment, value in points if math.isfinite(value)]
                if known:
                    begin_s = points[0][0]
                    name = _legend(legend, labels)
                    axes.plot(
                        [moment - begin_s for moment, _ in known],
                        [value for _, value in known],
                        label=name,
                        linewidth=1.2,
                        clip_on=False,
                    )
        axes.set_title(title, fontsize=9)
        axes.set_ylabel({"s": "s", "percentunit": "share"}.get(unit, ""), fontsize=7)
        axes.tick_params(labelsize=7)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=6)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel(f"time (s). {note}", fontsize=8, color="grey")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _legend(template: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        template = template.replace(f"{{{{{name}}}}}", value)
    return template or "value"
