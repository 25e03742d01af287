"""How the thread pools of encoder, adapter and LLM get on with each other: wall time of the chain by session options.

    python -m export.measure_threads --bundle BUNDLE --clip server/assets/selfcheck.flac

Each model has a pool of its own. Its threads spin for a while after a run, waiting for the next; on a machine without cores to
spare they take those that the next model's run needs. Every variant runs the chain of one request (features, encoder, adapter,
48 positions of prefill, one decode step) in a process of its own, several times in turn.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import soundfile
from threadpoolctl import threadpool_limits

from models.features.log_mel import log_mel

# Threads, entries of the session's options, and threads of numpy's linear algebra (None: as many as it likes).
VARIANTS: dict[str, tuple[int, dict[str, str], int | None]] = {
    "1 thread": (1, {}, 1),
    "all cores, as it comes": (0, {}, None),
    "all cores, numpy 1": (0, {}, 1),
    "all cores, numpy 1, no spinning": (0, {"session.intra_op.allow_spinning": "0"}, 1),
    "all cores, numpy 1, spinning ends with the run": (0, {"session.force_spinning_stop": "1"}, 1),
}
STAGES = ("features", "encoder", "adapter", "prefill", "decode")
PREFILL_TOKENS = 48
CONTEXT = 45
SPAN = 128
ROUNDS = 20
TURNS = 3


def open_with(graph: Path, variant: str) -> onnxruntime.InferenceSession:
    threads, entries, _ = VARIANTS[variant]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def llm_run(session: onnxruntime.InferenceSession, tokens: int, position: int) -> onnxruntime.IOBinding:
    """A run on random embeddings over slots of zeros, written in place, with the logits of the last position."""
    binding = session.io_binding()
    inputs: dict[str, Any] = {
        "positions": np.arange(position, position + tokens)[None],
        "write_index": np.array([position]),
        "wanted": np.array([[0, tokens - 1]]),
        "span": np.array([SPAN]),
    }
    for value in session.get_inputs():
        if value.name in inputs:
            binding.bind_cpu_input(value.name, inputs[value.name])
        elif value.name == "embeddings":
            embeddings = np.random.default_rng(0).normal(0, 0.1, (1, tokens, value.shape[-1]))
            binding.bind_cpu_input(value.name, embeddings.astype(np.float32))
        else:
            kind, layer = value.name.split("_")
            slot = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, *value.shape[1:]), np.float32))
            binding.bind_ortvalue_input(value.name, slot)
            binding.bind_ortvalue_output(f"{kind}_out_{layer}", slot)
    binding.bind_output("logits")
    return binding


def measure(bundle: Path, clip: Path, variant: str) -> dict[str, float]:
    """Median milliseconds per stage."""
    if (limit := VARIANTS[variant][2]) is not None:
        threadpool_limits(limit, "blas")
    encoder, adapter, llm = (open_with(bundle / f"{name}.onnx", variant) for name in ("encoder", "adapter", "llm"))
    audio, _ = soundfile.read(clip, dtype="float32")
    prefill, decode = llm_run(llm, PREFILL_TOKENS, CONTEXT), llm_run(llm, 1, CONTEXT + PREFILL_TOKENS)
    times: list[list[float]] = []
    for _ in range(ROUNDS):
        marks = [time.perf_counter()]
        features = log_mel(audio)
        marks.append(time.perf_counter())
        states = encoder.run(["states"], {"features": features})[0]
        marks.append(time.perf_counter())
        adapter.run(None, {"states": states})
        marks.append(time.perf_counter())
        llm.run_with_iobinding(prefill)
        marks.append(time.perf_counter())
        llm.run_with_iobinding(decode)
        marks.append(time.perf_counter())
        times.append(np.diff(marks).tolist())
    return {stage: 1000 * median(row[index] for row in times) for index, stage in enumerate(STAGES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True, help="mono, at 16 kHz")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.bundle, arguments.clip, arguments.variant)))
        return
    print(f"| ms | {' | '.join(STAGES)} | together |\n|---|{'---|' * (len(STAGES) + 1)}")
    rows: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(TURNS):
        for variant, results in rows.items():
            command = [sys.executable, "-m", "export.measure_threads", "--bundle", str(arguments.bundle)]
            command += ["--clip", str(arguments.clip), "--variant", variant]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    for variant, results in rows.items():
        medians = [median(result[stage] for result in results) for stage in STAGES]
        print(f"| {variant} | {' | '.join(f'{each:.1f}' for each in medians)} | {sum(medians):.1f} |")


if __name__ == "__main__":
    main()
