"""Measure Thinbridge beside faster-whisper and llama.cpp on this machine, in one run of about 8 minutes.

    python -m loadtest.bench                 # or: make bench
    python -m loadtest.bench --quick         # a smoke run; says nothing about speed

Every system runs in a process of its own on all cores, and only one works at a time. Writes latest.json, latest.md and plots
to `--out`. Exit status 1 where the run is void: it says why, and its figures must not be quoted.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loadtest.bench import analysis
from loadtest.bench.decode import measure_decode, transcript_rates
from loadtest.bench.latency import Peer, Sample, System, Thinbridge, measure_latency, texts_by_clip, time_request, transcribe_all
from loadtest.bench.report import write_report
from loadtest.clients.load import LoadResult, Question, measure_load
from loadtest.clients.server import BenchServer, ServerError, add_server_flags, make_body, server_options
from loadtest.support.machine import describe_run
from loadtest.support.options import add_data_flag, new_parser
from loadtest.support.paths import CLIPS, RESULTS, ROOT
from loadtest.support.process import LinePeer, OthersWatch, PeerError, cpu_seconds, peak_memory_mib
from loadtest.support.recordings import HOW, BenchClip, make_clips, read_recordings, write_clip
from loadtest.support.statistics import complete_summary, find_void, percentile

QUICK_RESULTS = ROOT / "runs" / "bench-quick"
LOAD_LENGTH_S = 5.0
BATCH_CLIPS = 16
MAX_WHOLE_RECORDINGS = 40
MAX_WER = 0.75
MAX_OTHER_CPU_SHARE = 0.05
MIN_ENCODE_MS = 1.0
"""Less means that the server knew the clip from before: it must not be set to keep encoder states for this."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    lengths_s: tuple[float, ...]
    clips_per_length: int
    samples: int
    decode_runs: int
    batch_runs: int
    concurrencies: tuple[int, ...]
    warm_up_s: float
    window_s: float


FULL = Plan((1, 3, 5, 10, 30), 8, 16, 6, 1, (1, 4, 16), 5, 20)
QUICK = Plan((1, 5), 2, 2, 2, 1, (1, 16), 0.5, 4)


def run_json(module: str, options: list[str]) -> dict[str, Any]:
    """Run a module of this project and return the JSON that it prints. Raises `PeerError`."""
    command = [sys.executable, "-m", module, *options]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise PeerError(f"{module} ended with status {result.returncode}")
    printed: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return printed


def measure_batch(whisper: LinePeer, clips: list[BenchClip], folder: Path, runs: int) -> dict[str, Any]:
    """faster-whisper's batched pipeline on many clips in one call: its own best throughput."""
    import numpy as np
    import soundfile

    parts = [soundfile.read(clips[number % len(clips)].path, dtype="float32")[0] for number in range(BATCH_CLIPS)]
    ends_s = np.cumsum([len(part) for part in parts]) / 16_000
    chunks = [[float(start), float(end)] for start, end in zip([0, *ends_s[:-1]], ends_s, strict=True)]
    clip = write_clip(folder, "batch", np.concatenate(parts))
    system = Peer("batch", whisper, beam_size=1, batched=True, chunks=chunks)
    samples = [time_request(system, clip, clip.seconds) for _ in tqdm(range(runs + 1), desc="batched pipeline")][1:]
    seconds = percentile([sample.seconds for sample in samples], 50)
    return {
        "clips": BATCH_CLIPS,
        "audio_s_per_s": round(clip.seconds / seconds, 2),
        "requests_per_s": round(BATCH_CLIPS / seconds, 3),
    }


def measure_throughput(server: BenchServer, questions: list[Question], plan: Plan) -> list[dict[str, Any]]:
    """Return every level, measured once on the way up and once on the way down, with the processor time of an answer."""
    results: dict[int, LoadResult] = {}
    cpu_s = dict.fromkeys(plan.concurrencies, 0.0)
    order = [*plan.concurrencies, *reversed(plan.concurrencies)]
    for concurrency in tqdm(order, desc="throughput", unit="level"):
        measure_load(server.url, questions, concurrency, 0.0, plan.warm_up_s)
        before_s = cpu_seconds(server.pid)
        result = measure_load(server.url, questions, concurrency, 0.0, plan.window_s)
        cpu_s[concurrency] += cpu_seconds(server.pid) - before_s
        results[concurrency] = results[concurrency].merge(result) if concurrency in results else result
    return [
        result.report() | {"cpu_ms_per_answer": round(1000 * cpu_s[level] / max(1, len(result.latencies_s)))}
        for level, result in results.items()
    ]


def load_questions(samples: list[Sample], clips: list[BenchClip]) -> list[Question]:
    """Return the clips with the texts that they had when nothing else ran."""
    texts = texts_by_clip(samples, analysis.EXACT)
    known = [clip for clip in clips if clip.name in texts]
    return [Question(make_body(clip.audio, draft="exact"), clip.seconds, min(texts[clip.name])) for clip in known]


def run(plan: Plan, threads: int, data: Path | None, options: list[str], cache_options: list[str]) -> dict[str, Any]:
    """Measure all; the result as it is written. Raises `PeerError` or `ServerError` where a system cannot be run."""
    result: dict[str, Any] = describe_run(ROOT)
    weights = run_json("training.peer_weights", cache_options)
    recordings = read_recordings(data, CLIPS, MAX_WHOLE_RECORDINGS)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        server = stack.enter_context(BenchServer(ROOT, options))
        clips = make_clips(recordings, list(plan.lengths_s), plan.clips_per_length, folder)
        whole = [write_clip(folder, r.name, r.samples, r.text) for r in recordings if r.seconds <= 30]
        with contextlib.ExitStack() as peers:
            whisper, llama = (
                peers.enter_context(LinePeer([sys.executable, "-m", module, *arguments, "--threads", str(threads)], ROOT))
                for module, arguments in (
                    ("loadtest.peers.whisper_peer", ["--model", weights["faster_whisper"]]),
                    ("loadtest.peers.llama_peer", ["--model", weights["llm"]]),
                )
            )
            systems: list[System] = [
                Thinbridge(analysis.EXACT, server, "exact"),
                Thinbridge(analysis.OFF, server, "off"),
                Peer(analysis.WHISPER, whisper, beam_size=1),
            ]
            whole_texts = transcribe_all(systems, whole)
            others = OthersWatch()
            samples = measure_latency(systems, clips, plan.samples)
            memory = {
                "Thinbridge, one request at a time": peak_memory_mib(server.pid),
                analysis.WHISPER: peak_memory_mib(whisper.pid),
            }
            batch = measure_batch(whisper, clips[LOAD_LENGTH_S], folder, plan.batch_runs)
            decode = measure_decode(server, llama, whole, [clip.text for clip in whole], plan.decode_runs)
            memory["llama.cpp (LLM alone)"] = peak_memory_mib(llama.pid)
        questions = load_questions(samples, clips[LOAD_LENGTH_S])
        levels = measure_throughput(server, questions, plan)
        other_cpu_share = others.share()
        memory["Thinbridge, after the load"] = peak_memory_mib(server.pid)

    stages = analysis.stage_table(samples, analysis.EXACT)
    answers = analysis.compare_answers(samples, whole, whole_texts, [system.name for system in systems])
    ours = {name: [s.reply for s in analysis.select(samples, name, LOAD_LENGTH_S)] for name in (analysis.EXACT, analysis.OFF)}
    decode["transcripts_5s"] = {name: transcript_rates(replies) for name, replies in ours.items() if replies}
    times = [sample.reply["times_ms"] for sample in samples if sample.system == analysis.EXACT]
    void = find_void(
        {
            "exact drafts give the text that no drafts give": lambda: answers["against_exact"][analysis.OFF]["equal_share"] == 1,
            "every system gives a clip the same text each time": lambda: not any(answers["changed"].values()),
            "every system's texts are near the truth": lambda: max(answers["word_error_rate"].values()) <= MAX_WER,
            "the encoder ran for every request": lambda: min(stage["encode_ms"] for stage in times) >= MIN_ENCODE_MS,
            "no answer changed under load": lambda: not any(level["changed_answers"] for level in levels),
            "no request failed under load": lambda: not any(level["errors"] for level in levels),
            "the machine was free for the run": lambda: other_cpu_share <= MAX_OTHER_CPU_SHARE,
            "the load generator kept up": lambda: all(level["generator_kept_up"] for level in levels),
        }
    )
    return result | {
        "void": void,
        "summary": complete_summary(analysis.summarise(samples, stages, levels, decode)),
        "threads": threads,
        "other_cpu_share": round(other_cpu_share, 4),
        "how": {"clips": HOW, "recordings": "tests/clips" if data is None else data.name, "samples": plan.samples},
        "answers": answers,
        "latency": analysis.latency_table(samples),
        "stages": stages,
        "throughput": levels,
        "faster_whisper_batch": batch,
        "decode": decode,
        "peak_memory_mib": {name: round(mib) for name, mib in memory.items()},
    }


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="few of everything, to see that it works")
    parser.add_argument("--samples", type=int, help=f"requests of each system at each length (default: {FULL.samples})")
    add_data_flag(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each peer (default: all cores)")
    add_server_flags(parser)
    parser.add_argument(
        "--out", type=Path, help=f"default: {RESULTS.relative_to(ROOT)}, of a smoke run {QUICK_RESULTS.relative_to(ROOT)}"
    )
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    if arguments.samples:
        plan = dataclasses.replace(plan, samples=arguments.samples)
    cache_options = ["--cache-dir", arguments.cache_dir] if arguments.cache_dir else []
    try:
        result = run(plan, arguments.threads, arguments.data, server_options(arguments), cache_options)
    except (PeerError, ServerError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if arguments.quick:
        result["void"].append("a full run (this is a smoke run)")
    out = arguments.out or (QUICK_RESULTS if arguments.quick else RESULTS)
    print(write_report(result, out))
    return 1 if result["void"] else 0


if __name__ == "__main__":
    sys.exit(main())
