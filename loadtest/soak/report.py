"""The report of a soak, with a picture."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.soak.bars import Bar, Injection, Outcome, outside_of
from loadtest.support.footprint import Reading
from loadtest.support.markdown import conditions, table, void_note
from loadtest.support.plots import open_plot
from loadtest.support.statistics import percentile

SHOWN_ERRORS = 12
VOID_FOR = (
    "Times and shares of a void run say nothing about the server. An answer that was lost or changed, and all that is left "
    "behind, would be a fault on a busy machine too.\n"
)
VERDICTS = {True: "kept", False: "**MISSED**", None: "run too short to say"}


def markdown(
    result: Mapping[str, Any], bars: Sequence[Bar], injections: Sequence[Injection], outcomes: Sequence[Outcome], begin_s: float
) -> str:
    """The whole report."""
    outside = outside_of(outcomes, injections)
    names = sorted({each.name for each in outcomes})
    errors = Counter((each.name, each.error) for each in outcomes if each.error)
    lines = [
        "# Soak",
        "",
        *conditions(dict(result)),
        *void_note(result["void"]),
        *([VOID_FOR] if result["void"] else []),
        f"{result['seconds']:g} s, {result['users']} users of `loadtest/users/mixed.py`, a fault every {result['period_s']:g} s "
        f"({len(injections)} in all). Away from faults means: not under way during one, nor in the 5 s after it. Work at a lower "
        f"priority, which gives way to the server, took {100 * result['low_priority_cpu_share']:.0f} % of the machine.",
        "",
        *table(["bar", "limit", "value", ""], [[bar.name, bar.limit, bar.value, VERDICTS[bar.kept]] for bar in bars]),
        "",
        *table(
            ["fault", "at", "lasted until the server was well", ""],
            [
                [each.fault, f"{each.begin_s - begin_s:.0f} s", f"{each.end_s - each.begin_s:.1f} s", each.complaint]
                for each in injections
            ],
        ),
        "",
        *table(
            ["what", "in all", "failed", "failed away from faults", "p50 s", "p95 s"],
            [_row(name, outcomes, outside) for name in names],
        ),
        "",
        *(["Failures:", ""] if errors else []),
        *(f"- {count}x {name}: {error}" for (name, error), count in errors.most_common(SHOWN_ERRORS)),
        *([""] if errors else []),
        "![latency and memory](soak.png)",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, outcomes: Sequence[Outcome], outside: Sequence[Outcome]) -> list[object]:
    mine = [each for each in outcomes if each.name == name]
    failed = sum(each.error is not None for each in mine)
    failed_outside = sum(each.error is not None for each in outside if each.name == name)
    # A number of words, not a time.
    times = (
        [None, None] if name == "revised words" else [f"{percentile([each.seconds for each in mine], q):.2f}" for q in (50, 95)]
    )
    return [name, len(mine), failed, failed_outside, *times]


def plot(
    outcomes: Sequence[Outcome], injections: Sequence[Injection], readings: Sequence[Reading], path: Path, begin_s: float
) -> None:
    """Latencies and failures above, memory of the processes below, faults as stripes."""
    with open_plot(path, rows=2, size=(10, 7)) as (above, below):
        for name in sorted({each.name for each in outcomes} - {"revised words", "session"}):
            good = [each for each in outcomes if each.name == name and each.error is None]
            above.scatter([each.end_s - begin_s for each in good], [each.seconds for each in good], s=6, label=name)
        failed = [each for each in outcomes if each.error]
        above.scatter(
            [each.end_s - begin_s for each in failed],
            [each.seconds for each in failed],
            s=30,
            c="black",
            marker="x",
            label="failed",
        )
        above.set(ylabel="seconds", yscale="symlog", title="Outcomes; stripes are faults")
        above.legend(fontsize=7, ncols=3)
        for name in sorted({name for reading in readings for name in reading.anonymous_mib}):
            seen = [reading for reading in readings if name in reading.anonymous_mib]
            below.plot([each.moment_s - begin_s for each in seen], [each.anonymous_mib[name] for each in seen], label=name)
        below.set(xlabel="time (s)", ylabel="anonymous memory (MiB)", ylim=(0, None))
        below.legend(fontsize=7)
        for axes in (above, below):
            axes.grid(alpha=0.3)
            for each in injections:
                axes.axvspan(each.begin_s - begin_s, each.end_s - begin_s, color="orange", alpha=0.3)
