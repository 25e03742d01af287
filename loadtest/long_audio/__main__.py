"""Hours of audio: files of them, and a live session; what becomes of the words, and what it takes.

    python -m loadtest.long_audio --data DATA        # 30 min and 3 h as files, 1 h live: some 20 minutes
    python -m loadtest.long_audio --minutes 5 --live-minutes 10 --out runs/long      # less of it

Starts a server of its own with a cap to match. Recordings of known text are joined with pauses, in an order that a seed decides,
and posted as one FLAC file: word error rate, words lost or doubled where one recording meets the next, time, and the memory of
all the server's processes all the while. The same recordings one by one are what to compare with. The live session is sent as
fast as the server takes it, and checked as in `loadtest.live`: a second of audio must cost the same at its end as at its
beginning. Writes long_audio.md, .json and .png. Exit status 1 where the live session broke the protocol.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from loadtest.clients.server import MAX_TOKENS, BenchServer, ServerError, add_server_flags, make_body, server_options
from loadtest.clients.stream import Refused, Script, run_stream
from loadtest.live.audio import Speech, clear_speech, make_stream, say
from loadtest.live.checks import complaints
from loadtest.long_audio.report import write_report
from loadtest.long_audio.session import stretches
from loadtest.long_audio.text import SeamReport, add_up, compare
from loadtest.support.footprint import Reading, Watch
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.machine import describe_run
from loadtest.support.options import add_data_flag, add_results_flag, new_parser
from loadtest.support.paths import CLIPS, ROOT
from loadtest.support.process import OthersWatch
from loadtest.support.recordings import RATE_HZ, read_recordings, write_clip

MAX_RECORDINGS = 150
FILE_MINUTES = [30.0, 180.0]
LIVE_MINUTES = 60.0
PAUSES_S = (0.3, 1.2)
WATCH_PERIOD_S = 0.5
ANSWER_TIMEOUT_S = 4 * 3600.0
BODY_TIMEOUT_S = 600.0
MAX_BODY_BYTES = 2**30
SPARE_S = 600.0
SEED = 0


def write_file(path: Path, speeches: Sequence[Speech], seconds: float) -> list[str]:
    """Join recordings into a FLAC file; the texts of them, in order."""
    texts = []
    with soundfile.SoundFile(path, "w", RATE_HZ, 1, "PCM_16", format="FLAC") as file:
        for samples, spoken in say(speeches, seconds, SEED, PAUSES_S):
            file.write(samples)
            if spoken is not None:
                texts.append(spoken.text)
    return texts


def post_file(server: BenchServer, path: Path) -> dict[str, Any]:
    """Post a file, which is read while it is sent, and return the reply. Raises `ServerError`."""
    with path.open("rb") as file:
        fields = {"instruction": TRANSCRIBE, "max_tokens": str(MAX_TOKENS)}
        response = server.client.post("/v1/instruct", files={"audio": file}, data=fields, timeout=ANSWER_TIMEOUT_S)
    if response.status_code != 200:
        raise ServerError(f"status {response.status_code}: {response.text[:500]}")
    reply: dict[str, Any] = response.json()
    return reply


def ask_alone(server: BenchServer, speeches: Sequence[Speech], folder: Path) -> SeamReport:
    """Ask about each recording on its own."""
    reports = []
    for speech in tqdm(speeches, desc="one by one", unit="clip", mininterval=2):
        clip = write_clip(folder, speech.recording.name, speech.recording.samples)
        reports.append(compare([speech.recording.text], server.answer(make_body(clip.audio))["text"]))
    return add_up(reports)


def measure_file(
    server: BenchServer, speeches: Sequence[Speech], minutes: float, folder: Path
) -> tuple[dict[str, Any], list[Reading]]:
    """Return the figures of one long file, and the server's memory while it was answered."""
    path = folder / f"{minutes:g}-minutes.flac"
    texts = write_file(path, speeches, 60 * minutes)
    started_s = time.monotonic()
    with Watch(server.pid, WATCH_PERIOD_S) as watch:
        reply = post_file(server, path)
    wall_s = time.monotonic() - started_s
    first, peak, last = watch.readings[0], watch.peak(), watch.readings[-1]
    report = compare(texts, reply["text"])
    return {
        "minutes": minutes,
        "file_mib": round(path.stat().st_size / 2**20, 1),
        "recordings": len(texts),
        "audio_s": reply["audio_s"],
        "wall_s": round(wall_s, 2),
        "rtfx": round(reply["audio_s"] / wall_s, 2),
        "cpu_s_per_audio_s": round((last.cpu_s - first.cpu_s) / reply["audio_s"], 4),
        "memory_before_mib": round(first.total_mib, 1),
        "peak_mib": round(peak.total_mib, 1),
        "peak_by_process_mib": {name: round(mib, 1) for name, mib in peak.anonymous_mib.items()},
        "memory_after_mib": round(last.total_mib, 1),
        "finish_reason": reply["finish_reason"],
        **asdict(report),
        "lost_share": report.lost_share,
    }, watch.readings


def measure_live(server: BenchServer, speeches: Sequence[Speech], minutes: float) -> tuple[dict[str, Any], list[Reading]]:
    """Return the figures of one long session, and the server's memory meanwhile. Raises `Refused`."""
    audio = make_stream(speeches, 60 * minutes, SEED, PAUSES_S)
    started_s = time.monotonic()
    with Watch(server.pid, WATCH_PERIOD_S) as watch:
        run = run_stream(server.url, Script(audio.pcm, speed=0))
    wall_s = time.monotonic() - started_s
    text = " ".join(arrival.event["text"] for arrival in run.of_type("final"))
    report = compare([spoken.text for spoken in audio.spoken], text)
    return {
        "minutes": minutes,
        "audio_s": run.script.audio_s,
        "wall_s": round(wall_s, 2),
        "rtfx": round(run.script.audio_s / wall_s, 2),
        "utterances": len(run.of_type("final")),
        "partials": len(run.of_type("partial")),
        "peak_mib": round(watch.peak().total_mib, 1),
        "stretches": [asdict(each) for each in stretches(run, watch.readings)],
        "complaints": complaints(run),
        **asdict(report),
        "lost_share": report.lost_share,
    }, watch.readings


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, list[Reading]]]:
    """Measure all; the result as it is written, and memory over time by name. Raises `ServerError` or `Refused`."""
    result = describe_run(ROOT)
    speeches = clear_speech(read_recordings(arguments.data, CLIPS, MAX_RECORDINGS))
    limits = {
        "max_body_bytes": MAX_BODY_BYTES,
        "body_timeout_s": BODY_TIMEOUT_S,
        "live_max_session_s": 60 * arguments.live_minutes + SPARE_S,
        **({"max_audio_s": 60 * max(arguments.minutes) + SPARE_S} if arguments.minutes else {}),
    }
    watches: dict[str, list[Reading]] = {}
    files, live = [], None
    with BenchServer(ROOT, server_options(arguments), **limits) as server, tempfile.TemporaryDirectory() as folder:
        others = OthersWatch()
        alone = ask_alone(server, speeches, Path(folder))
        for minutes in tqdm(arguments.minutes, desc="long files", unit="file"):
            measured, watches[f"file of {minutes:g} min"] = measure_file(server, speeches, minutes, Path(folder))
            files.append(measured)
        if arguments.live_minutes:
            live, watches[f"live, {arguments.live_minutes:g} min"] = measure_live(server, speeches, arguments.live_minutes)
        other_cpu_share = others.share()
    return result | {
        "other_cpu_share": round(other_cpu_share, 4),
        "recordings": "tests/clips" if arguments.data is None else arguments.data.name,
        "alone": asdict(alone) | {"lost_share": alone.lost_share, "recordings": len(speeches)},
        "files": files,
        "live": live,
    }, watches


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--minutes", type=float, nargs="*", default=FILE_MINUTES, help="lengths of files (default: 30 180)")
    parser.add_argument("--live-minutes", type=float, default=LIVE_MINUTES, help="length of the session; 0: none (default: 60)")
    add_data_flag(parser)
    add_results_flag(parser)
    add_server_flags(parser)
    arguments = parser.parse_args()
    try:
        result, watches = run(arguments)
    except (ServerError, Refused) as error:
        print(f"long_audio: {error}", file=sys.stderr)
        return 2
    print(write_report(result, watches, arguments.out))
    return 1 if result["live"] and result["live"]["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
