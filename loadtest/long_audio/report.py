"""The result of `loadtest.long_audio` as files: long_audio.json, long_audio.md and long_audio.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.support.footprint import Reading
from loadtest.support.markdown import conditions, table
from loadtest.support.plots import plot_memory
from loadtest.support.results import write_results

FILE_FIGURES = ("file_mib", "wall_s", "rtfx", "cpu_s_per_audio_s", "memory_before_mib", "peak_mib", "memory_after_mib")


def write_report(result: dict[str, Any], watches: Mapping[str, Sequence[Reading]], folder: Path) -> str:
    """Write all files; returns the Markdown."""
    memory = {
        name: [[round(r.moment_s - readings[0].moment_s, 1), round(r.total_mib, 1)] for r in readings]
        for name, readings in watches.items()
    }
    text = markdown(result)
    write_results(folder, "long_audio", result | {"memory": memory}, text)
    plot_memory(watches, folder / "long_audio.png", "Memory while long audio is answered", result["machine"].split(",")[0])
    return text


def markdown(result: dict[str, Any]) -> str:
    """Return the whole report."""
    lines = [
        "# Long audio",
        "",
        *conditions(result),
        f"Recordings of {result['recordings']}, joined with pauses of 0.3 to 1.2 s.",
        "",
        "## Words",
        "",
        *table(
            ["audio", "recordings", "words", "WER", "seams", "edge words lost", "other words lost", "doubled at seams"],
            [
                _words("each recording alone", result["alone"]),
                *(_words(f"one file of {row['minutes']:g} min", row) for row in result["files"]),
                *([_words(f"live, {result['live']['minutes']:g} min", result["live"])] if result["live"] else []),
            ],
        ),
        "",
        "Edge words are the first and the last of each recording. Lost: the text has nothing in its place, by the alignment with "
        "the fewest errors; the model loses some of each recording alone as well, which is what to compare with. Doubled: words "
        "too many at a seam that stand next to it already.",
        "",
        *(_files(result["files"]) if result["files"] else []),
        *(_live(result["live"]) if result["live"] else []),
        "![memory](long_audio.png)",
    ]
    return "\n".join(lines) + "\n"


def _files(files: Sequence[dict[str, Any]]) -> list[str]:
    return [
        "## Files: time and memory",
        "",
        *table(
            ["audio", "file MiB", "time s", "times real time", "CPU s per audio s", "MiB before", "peak MiB", "MiB after"],
            [[f"{row['minutes']:g} min", *(row[name] for name in FILE_FIGURES)] for row in files],
        ),
        "",
        "Memory of all processes of the server without pages of files; the audio as it came is part of it. At the peak, by "
        "process:",
        "",
        *(f"- {row['minutes']:g} min: {_by_process(row['peak_by_process_mib'])}" for row in files),
        "",
    ]


def _words(name: str, row: dict[str, Any]) -> list[Any]:
    lost = f"{row['lost']} of {row['edge_words']} ({100 * row['lost_share']:.1f} %)"
    elsewhere = f"{100 * row['elsewhere_lost_share']:.1f} %"
    return [
        name,
        row.get("recordings"),
        row["words"],
        f"{100 * row['word_error_rate']:.1f} %",
        row["seams"],
        lost,
        elsewhere,
        row["doubled"],
    ]


def _by_process(held_mib: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {mib:g}" for name, mib in held_mib.items())


def _live(live: dict[str, Any]) -> list[str]:
    names = list(live["stretches"][-1]["anonymous_mib"]) if live["stretches"] else []
    rows = [
        [
            f"{each['start_s'] / 60:.1f} to {each['end_s'] / 60:.1f}",
            round(each["cpu_s_per_audio_s"], 4),
            *(round(each["anonymous_mib"].get(name, 0.0), 1) for name in names),
        ]
        for each in live["stretches"]
    ]
    return [
        "## A live session",
        "",
        *([f"**It broke the protocol:** {'; '.join(live['complaints'][:5])}", ""] if live["complaints"] else []),
        f"{live['minutes']:g} minutes of audio in {live['wall_s']} s ({live['rtfx']} times real time), as fast as the server "
        f"took it: {live['utterances']} utterances, {live['partials']} partials, peak {live['peak_mib']} MiB.",
        "",
        *table(["minutes of the audio", "CPU s per audio s", *(f"{name}, MiB" for name in names)], rows),
        "",
    ]
