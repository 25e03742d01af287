"""The result of `loadtest.live` as files: live.json, live.md and live.png."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.live.figures import count_revisions
from loadtest.live.levels import LevelResult
from loadtest.support.markdown import conditions, table, void_note
from loadtest.support.plots import describe_conditions, open_plot
from loadtest.support.results import write_results
from loadtest.support.statistics import distribution_ms, percentile

TARGET_STREAMS = 2
TARGETS_MS = (("final", "p95_ms", 300.0), ("first_partial", "p50_ms", 600.0))


def describe_level(result: LevelResult) -> dict[str, Any]:
    """Return a level's figures, times in ms, and for each thing said what came of it, in seconds."""
    heard = result.heard()
    finals_s = [each.final_s for each in heard if each.final_s is not None and not each.cut_off]
    revisions = [count_revisions(run) for run in result.runs]
    words = sum(each.words for each in revisions)
    silence_s = result.level.silence_ms / 1000
    return {
        **asdict(result.level),
        "said": len(heard),
        "not_heard": sum(each.utterances == 0 for each in heard),
        "cut_off": sum(each.cut_off for each in heard),
        "utterances": sum(len(run.of_type("final")) for run in result.runs),
        "final": _distribution(finals_s),
        "beyond_silence": _distribution([final_s - silence_s for final_s in finals_s]),
        "first_partial": _distribution([each.first_partial_s for each in heard]),
        "end_off": _distribution([each.end_off_s for each in heard]),
        "partials": sum(each.partials for each in revisions),
        "revised_word_share": round(sum(each.revised for each in revisions) / words, 4) if words else None,
        "cpu_cores": round(result.cpu_cores, 3),
        "slip_p99_ms": round(1000 * percentile(result.slips_s(), 99), 2),
        "rest": result.load.report() if result.load else None,
        "heard": [
            {
                "name": each.spoken.name,
                "utterances": each.utterances,
                "final_s": each.final_s,
                "first_partial_s": each.first_partial_s,
                "end_off_s": each.end_off_s,
            }
            for each in heard
        ],
    }


def _distribution(seconds: Sequence[float | None]) -> dict[str, float] | None:
    measured = [each for each in seconds if each is not None]
    return distribution_ms(measured) if measured else None


def write_report(result: dict[str, Any], folder: Path) -> str:
    """Write all files; returns the Markdown."""
    text = markdown(result)
    write_results(folder, "live", result, text)
    write_plot(result, folder / "live.png")
    return text


def markdown(result: dict[str, Any]) -> str:
    """Return the whole report."""
    how = result["how"]
    lines = [
        "# Live audio",
        "",
        *conditions(result),
        *void_note(result["void"]),
        *_details(result),
        f"Paced streams of {how['seconds']:g} s, made of the {how['clear_recordings']} recordings of {how['recordings']} that "
        "are short and have clear bounds of speech, with pauses of 1.5 to 2.5 s; each level once. Times in ms as the speaker "
        "sees them, audio sent in pieces of 40 ms. REST: beside the streams, one client posts a file of some 5 s over and over.",
        "",
        "## What was expected",
        "",
        *_targets(result["levels"]),
        "",
        "## From the true end of speech to the final",
        "",
        "It holds the silence that ends an utterance: before that has passed, the speech may go on. Beyond it are "
        "the detector's delay, the models' work as far as it was not done by then, and the way.",
        "",
        *table(
            ["silence", "streams", "REST", "said", "p50", "p95", "beyond the silence p50", "p95", "cut off"],
            [
                [*_level(row), row["said"], *_pair(row["final"]), *_pair(row["beyond_silence"]), row["cut_off"]]
                for row in _sorted(result["levels"])
            ],
        ),
        "",
        "Cut off: the last final came before the speech had ended, so there is no latency to count.",
        "",
        "## First text after the true onset",
        "",
        *table(
            ["silence", "streams", "REST", "n", "p50", "p95", "partials", "words taken back"],
            [
                [*_level(row), _count(row["first_partial"]), *_pair(row["first_partial"]), row["partials"], _share(row)]
                for row in _sorted(result["levels"])
            ],
        ),
        "",
        "Words taken back: of all words that partials showed, those that a later one replaced. Stable ones never were: that is "
        "checked.",
        "",
        "## What it cost",
        "",
        *table(
            ["silence", "streams", "REST", "server's cores", "utterances", "REST requests", "REST p50", "generator's slip p99"],
            [
                [
                    *_level(row),
                    row["cpu_cores"],
                    row["utterances"],
                    *((row["rest"]["n"], row["rest"]["p50_ms"]) if row["rest"] and "n" in row["rest"] else (None, None)),
                    row["slip_p99_ms"],
                ]
                for row in _sorted(result["levels"])
            ],
        ),
        "",
        "![latencies](live.png)",
    ]
    return "\n".join(lines) + "\n"


def _details(result: dict[str, Any]) -> list[str]:
    """List the first faults of each kind."""
    differing = [
        f"- stream {each['stream']}: as a file {each['whole']!r}, streamed {each['streamed']!r}"
        for each in result["texts_that_differ"]
    ]
    lines = [*(f"- {complaint}" for complaint in result["complaints"][:10]), *differing[:3]]
    return [*lines, ""] if lines else []


def _sorted(levels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(levels, key=lambda row: (-row["silence_ms"], row["streams"], row["rest"] is not None))


def _level(row: dict[str, Any]) -> list[Any]:
    return [f"{row['silence_ms']} ms", row["streams"], "yes" if row["rest"] else ""]


def _pair(distribution: dict[str, float] | None) -> list[float | None]:
    return [None, None] if distribution is None else [round(distribution["p50_ms"]), round(distribution["p95_ms"])]


def _count(distribution: dict[str, float] | None) -> float:
    return distribution["n"] if distribution else 0


def _share(row: dict[str, Any]) -> str | None:
    return None if row["revised_word_share"] is None else f"{100 * row['revised_word_share']:.1f} %"


def _targets(levels: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in _sorted(levels):
        if row["streams"] != TARGET_STREAMS:
            continue
        for figure, key, target_ms in TARGETS_MS:
            value_ms = row[figure][key] if row[figure] else None
            verdict = "not measured" if value_ms is None else "met" if value_ms <= target_ms else "missed"
            rows.append([*_level(row), f"{figure.replace('_', ' ')} {key[:3]}", value_ms, f"at most {target_ms:g}: {verdict}"])
    return table(["silence", "streams", "REST", "figure", "ms", "expected"], rows)


def write_plot(result: dict[str, Any], path: Path) -> None:
    """p50 with a whisker to p95, of finals and of first texts, by number of streams."""
    with open_plot(path, columns=2, size=(11, 4.5), note=describe_conditions(result)) as (left, right):
        series: dict[tuple[int, bool], list[dict[str, Any]]] = {}
        for row in _sorted(result["levels"]):
            series.setdefault((row["silence_ms"], row["rest"] is not None), []).append(row)
        for number, ((silence_ms, rest), rows) in enumerate(series.items()):
            label = f"{silence_ms} ms of silence{', REST beside' if rest else ''}"
            for axes, key in ((left, "final"), (right, "first_partial")):
                points = [(row["streams"] * 1.03 ** (number - 1.5), row[key]) for row in rows if row[key]]
                middle = [values["p50_ms"] for _, values in points]
                whisker = [[0] * len(points), [values["p95_ms"] - values["p50_ms"] for _, values in points]]
                axes.errorbar(
                    [place for place, _ in points],
                    middle,
                    yerr=whisker,
                    label=label,
                    color=f"C{number}",
                    marker="o",
                    capsize=3,
                    linestyle="--" if rest else "-",
                )
        left.set(title="True end of speech to final: p50, whisker to p95", ylabel="ms")
        right.set(title="True onset to first text: p50, whisker to p95", ylabel="ms")
        counts = sorted({row["streams"] for row in result["levels"]})
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.set(xlabel="streams", ylim=(0, None))
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
