"""The benchmark's result as files: latest.json, latest.md and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.bench.analysis import INSIDE
from loadtest.bench.plots import write_plots
from loadtest.support.markdown import conditions, table, void_note
from loadtest.support.results import write_results

TARGETS = {
    "latency_ratio_vs_faster_whisper_5s": ("at most", 0.25, "request to text, p50, ours over faster-whisper base int8 beam 1"),
    "draft_speedup_5s": ("at least", 1.8, "no drafts over exact drafts, p50, the same texts"),
    "decode_ratio_vs_llamacpp": ("at least", 1.0, "tokens per second of the LLM without drafts, ours over llama.cpp's"),
    "throughput_c16_over_c1": ("at least", 1.2, "requests per second at 16 clients over those at 1"),
    "server_overhead_p50_ms": ("below", 5.0, "what the client waits beyond features, queue, models and detokenising"),
    "first_token_p50_ms": (None, None, "from sending a recording with a question for the LLM to the first piece of its answer"),
}


def write_report(result: dict[str, Any], folder: Path) -> str:
    """Write all files; returns the Markdown."""
    text = markdown(result)
    write_results(folder, "latest", result, text)
    write_plots(result, folder)
    return text


def markdown(result: dict[str, Any]) -> str:
    """Return the whole report."""
    lines = [
        "# Benchmark",
        "",
        *conditions(result),
        *void_note(result["void"]),
        "## Summary",
        "",
        *_summary(result["summary"]),
        "",
        "## Latency, one request at a time",
        "",
        f"From request to whole text as the client sees it; {result['threads']} threads each, one system at a time, all taking "
        "turns on each clip. A percentile is one of the measured values (nearest rank), so with few of them p99 is the largest. "
        "The instruction is always the same, as in use, so its K/V comes from the server's prefix cache.",
        "",
        *table(
            ["audio", "system", "p50 ms", "p95 ms", "p99 ms", "n", "CPU s per audio s"],
            [
                [
                    f"{row['length_s']:g} s",
                    row["system"],
                    row["p50_ms"],
                    row["p95_ms"],
                    row["p99_ms"],
                    row["n"],
                    row["cpu_s_per_audio_s"],
                ]
                for row in sorted(result["latency"], key=lambda row: float(row["length_s"]))
            ],
        ),
        "",
        result["how"]["clips"] + f" Recordings: {result['how']['recordings']}.",
        "",
        "![latency](latency.png)",
        "",
        "## Where our time goes",
        "",
        *_stages(result["stages"]),
        "",
        "![stages](stages.png)",
        "",
        "## Throughput",
        "",
        *_throughput(result),
        "",
        "![throughput](throughput.png)",
        "",
        "## LLM alone",
        "",
        *_decode(result["decode"]),
        "",
        "## Peak memory",
        "",
        *table(["system", "MiB"], [[name, mib] for name, mib in result["peak_memory_mib"].items()]),
        "",
        "Each process's peak resident size, summed over a system's processes; pages that several share count in each.",
        "",
        "## Answers",
        "",
        *_answers(result["answers"]),
    ]
    return "\n".join(lines) + "\n"


def _summary(summary: dict[str, Any]) -> list[str]:
    rows = []
    for name, value in summary.items():
        relation, target, meaning = TARGETS[name]
        verdict = "-"
        if relation and target is not None:
            met = value is not None and (value >= target if relation == "at least" else value <= target)
            verdict = f"{relation} {target:g}: {'met' if met else 'not measured' if value is None else 'missed'}"
        rows.append([f"`{name}`", value, verdict, meaning])
    return table(["figure", "value", "expected", "what it is"], rows)


def _stages(stages: Sequence[dict[str, Any]]) -> list[str]:
    names = ["audio_decode_ms", *INSIDE, "total_ms", "client_ms", "overhead_ms"]
    rows = [[f"{row['length_s']:g} s", *(row[name] for name in names)] for row in stages]
    return [
        "Medians in ms with exact drafts, from the server's own stage times. The overhead is what the client waits beyond "
        "features, queue, encoder, adapter, prefill, decode and detokenising; decoding of the audio file is part of it.",
        "",
        *table(["audio", *(name.removesuffix("_ms").replace("_", " ") for name in names)], rows),
    ]


def _throughput(result: dict[str, Any]) -> list[str]:
    keys = ["concurrency", "requests_per_s", "audio_s_per_s", "cpu_ms_per_answer", "p50_ms", "p95_ms", "refused_429"]
    keys += ["errors", "changed_answers", "generator_cpu_share", "generator_lag_p95_ms"]
    batch = result["faster_whisper_batch"]
    return [
        "Closed loop on 5 s clips, exact drafts; every level once on the way up and once on the way down. A refused request "
        "(429) is sent again after the wait that the server asks for, and its latency counts from the first attempt.",
        "",
        *table([key.replace("_", " ") for key in keys], [[level.get(key) for key in keys] for level in result["throughput"]]),
        "",
        f"For scale: faster-whisper's batched pipeline on {batch['clips']} such clips in one call does "
        f"{batch['requests_per_s']} clips/s, {batch['audio_s_per_s']} s of audio per s.",
    ]


def _decode(decode: dict[str, Any]) -> list[str]:
    rows = [
        ["Thinbridge, no drafts", decode["thinbridge_tokens_per_s"], "-"],
        ["llama.cpp", decode["llamacpp_tokens_per_s"], decode["llamacpp_prompt_tokens_per_s"]],
    ]
    drafts = [
        [name, row["output_tokens_per_s"], row["accepted_share"], row["passes"]] for name, row in decode["transcripts_5s"].items()
    ]
    return [
        f"Answers to a spoken prompt, medians of {decode['answers']} of {decode['runs']} runs in turns; the others ended before "
        "there was anything to time. Ours is the time that 80 tokens more take, in the bundle's precision; llama.cpp reads the "
        f"GGUF behind the bundle. The first piece of such an answer came after {decode['thinbridge_first_token_ms']} ms: that "
        "includes the transcript.",
        "",
        *table(["system", "decoded tokens/s", "prompt tokens/s"], rows),
        "",
        "Transcripts of 5 s, tokens of the answer per second of prefill and decode together:",
        "",
        *table(["system", "tokens/s", "draft tokens accepted", "passes per transcript"], drafts),
    ]


def _answers(answers: dict[str, Any]) -> list[str]:
    rows = []
    for system, rate in answers["word_error_rate"].items():
        against = answers["against_exact"].get(system, {})
        same = f"{100 * against['equal_share']:.1f} %" if against else "-"
        between = f"{100 * against['wer']:.1f} %" if against else "-"
        whole = answers["whole_against_exact"].get(system)
        whole_wer = f"{100 * whole['wer']:.1f} %" if whole else "-"
        rows.append([system, f"{100 * rate:.1f} %", whole_wer, same, between, answers["changed"][system]])
    return [
        f"Word error rate on {answers['recordings']} whole recordings, and between ours with exact drafts and the others there. "
        f"Then on these and {answers['clips']} clips, which may end within a word: share of texts that are equal to the letter, "
        "word error rate between the two, and clips whose text ever changed.",
        "",
        *table(["system", "WER", "WER against ours", "clips too: equal", "WER against ours", "changed"], rows),
    ]
