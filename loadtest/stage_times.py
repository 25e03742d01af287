"""Time per stage by audio length, from the server's own replies.

    python -m loadtest.stage_times --url http://127.0.0.1:8000 --clip tests/clips/ljspeech-LJ001-0016.flac

The clip is repeated or cut to each length. Prints a table of medians, the share of time outside the models, and the
memory of the server process where `--pid` names it.
"""

import argparse
import io
import statistics
from pathlib import Path

import httpx
import numpy as np
import soundfile

from loadtest.support.footprint import footprints, total
from loadtest.support.markdown import table

MODEL_STAGES = ("encode_ms", "adapter_ms", "prefill_ms", "decode_ms")
INSTRUCTION = "Transcribe the speech to text."


def cut_to(clip: Path, seconds: float) -> bytes:
    """A WAV of the clip, repeated or cut to `seconds`."""
    samples, rate_hz = soundfile.read(clip, dtype="float32")
    wanted = round(seconds * rate_hz)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.resize(samples, wanted), rate_hz, format="WAV")
    return buffer.getvalue()


def measure(client: httpx.Client, wav: bytes, runs: int) -> dict[str, float]:
    """Median of each stage over `runs` requests, one after the other, after one that is not counted; and output tokens."""
    replies = []
    for _ in range(runs + 1):
        reply = client.post("/v1/instruct", files={"audio": wav}, data={"instruction": INSTRUCTION})
        reply.raise_for_status()
        replies.append(reply.json())
    counted = replies[1:]
    medians = {stage: statistics.median(reply["times_ms"][stage] for reply in counted) for stage in counted[0]["times_ms"]}
    return medians | {"output_tokens": counted[0]["usage"]["output_tokens"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.3, 3.0, 12.0, 30.0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pid", type=int, help="the server's process, to report its memory")
    arguments = parser.parse_args()
    with httpx.Client(base_url=arguments.url, timeout=120) as client:
        rows = [(seconds, measure(client, cut_to(arguments.clip, seconds), arguments.runs)) for seconds in arguments.seconds]
    stages = list(rows[0][1])
    lines = []
    for seconds, row in rows:
        outside = 1 - sum(row[stage] for stage in MODEL_STAGES) / row["total_ms"]
        lines.append([f"{seconds:g} s", *(f"{row[stage]:.1f}" for stage in stages), f"{100 * outside:.1f} %"])
    print(*table(["audio", *stages, "outside the models"], lines), sep="\n")
    if arguments.pid:
        print(f"\nResident memory of the server and its children: {total(footprints(arguments.pid))['resident_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
