"""How long a speaker waits for text at `/v1/stream` on this machine, without and with other work beside it.

    python -m loadtest.live --data DATA      # some 8 minutes; writes live.md, live.json and live.png to loadtest/results
    python -m loadtest.live --seconds 20 --streams 1 2 --silence-ms 200 --out runs/live     # less of it

Starts a server of its own. Each stream says recordings of up to 5 s with clear bounds of speech
(`loadtest.support.speech_bounds`) in real time, with pauses of 1.5 to 2.5 s, in an order of its own that is the same in each
run. A level is a number of streams, alone or beside a client that posts files without a pause, under one setting of the silence
that ends an utterance. Every session is checked against the protocol (`loadtest.live.checks`: stable text never changes, one
final per utterance, in order, and so on). A stream's text has to be the same at every level, and at the default silence of 500
ms that of its audio posted as a file with `chunking=voice`. Exit status 1 where the run is void: it says why, and its figures
must not be quoted.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loadtest.clients.load import Question
from loadtest.clients.server import BenchServer, ServerError, add_server_flags, make_body, server_options
from loadtest.clients.stream import Refused
from loadtest.live.audio import Speech, StreamAudio, clear_speech, make_stream
from loadtest.live.checks import complaints, slip_complaint
from loadtest.live.figures import final_text
from loadtest.live.levels import Level, LevelResult, run_level
from loadtest.live.report import describe_level, write_report
from loadtest.support.machine import describe_run
from loadtest.support.options import add_data_flag, add_results_flag, new_parser
from loadtest.support.paths import CLIPS, ROOT
from loadtest.support.process import OthersWatch
from loadtest.support.recordings import read_recordings, write_clip
from loadtest.support.statistics import find_void

MAX_RECORDINGS = 150
MAX_RECORDING_S = 5.0
"""So that there is much to measure in little time."""
STREAMS = [1, 2, 4]
DEFAULT_SILENCE_MS = 500
SILENCES_MS = [DEFAULT_SILENCE_MS, 200]
SECONDS = 35.0
REST_CLIP_S = 5.0
MAX_OTHER_CPU_SHARE = 0.05


def whole_text(server: BenchServer, audio: StreamAudio) -> str:
    """Return the answer about a stream's audio as a file that is cut as live speech is."""
    return " ".join(server.answer(make_body(audio.wav, chunking="voice"))["text"].split())


def ask_first(server: BenchServer, speeches: Sequence[Speech], folder: Path) -> Question:
    """Return the file that is posted beside the streams, with the answer that it gets when nothing else runs."""
    speech = min(speeches, key=lambda each: abs(each.recording.seconds - REST_CLIP_S))
    clip = write_clip(folder, speech.recording.name, speech.recording.samples)
    body = make_body(clip.audio)
    return Question(body, clip.seconds, server.answer(body)["text"].strip())


def judge(results: Sequence[LevelResult], whole: Sequence[str], other_cpu_share: float) -> dict[str, Any]:
    """Which checks fail, and what exactly was wrong. `whole` has the text of each stream's file, which is cut at the silence
    that is the default; there is none where no level has it."""
    wrong = [
        f"{each.level.name}, stream {number}: {complaint}"
        for each in results
        for number, run in enumerate(each.runs)
        for complaint in complaints(run)
    ]
    slips = [f"{each.level.name}: {complaint}" for each in results if (complaint := slip_complaint(each.slips_s()))]
    texts: dict[tuple[int, int], set[str]] = {}
    for each in results:
        for number, run in enumerate(each.runs):
            texts.setdefault((each.level.silence_ms, number), set()).add(final_text(run))
    differing = [
        {"stream": number, "whole": text, "streamed": sorted(texts[DEFAULT_SILENCE_MS, number])}
        for number, text in enumerate(whole)
        if texts[DEFAULT_SILENCE_MS, number] != {text}
    ]
    loads = [each.load for each in results if each.load is not None]
    void = find_void(
        {
            "every session kept to the protocol": lambda: not wrong,
            "a stream's text is the same at every level": lambda: all(len(each) == 1 for each in texts.values()),
            "a stream's text is that of its audio as a file": lambda: not differing,
            "everything that was said was heard": lambda: all(heard.utterances for each in results for heard in each.heard()),
            "the generator was on time": lambda: not slips,
            "no request beside the streams failed": lambda: not any(load.errors for load in loads),
            "no answer beside the streams changed": lambda: not any(load.changed for load in loads),
            "the machine was free for the run": lambda: other_cpu_share <= MAX_OTHER_CPU_SHARE,
        }
    )
    return {
        "void": void,
        "complaints": wrong + slips,
        "texts_that_differ": differing,
        "other_cpu_share": round(other_cpu_share, 4),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all; the result as it is written. Raises `ServerError` or `Refused` where the server does not serve."""
    result = describe_run(ROOT)
    recordings = read_recordings(arguments.data, CLIPS, MAX_RECORDINGS)
    speeches = clear_speech([recording for recording in recordings if recording.seconds <= MAX_RECORDING_S])
    audios = [make_stream(speeches, arguments.seconds, seed=number) for number in range(max(arguments.streams))]
    levels = [Level(*each) for each in product(arguments.streams, (False, True), arguments.silence_ms)]
    with BenchServer(ROOT, server_options(arguments)) as server, tempfile.TemporaryDirectory() as folder:
        question = ask_first(server, speeches, Path(folder))
        others = OthersWatch()
        results = [
            run_level(server.url, server.pid, level, audios[: level.streams], question)
            for level in tqdm(levels, desc="live", unit="level")
        ]
        other_cpu_share = others.share()
        whole = [whole_text(server, audio) for audio in audios] if DEFAULT_SILENCE_MS in arguments.silence_ms else []
    how = {
        "seconds": arguments.seconds,
        "recordings": "tests/clips" if arguments.data is None else arguments.data.name,
        "clear_recordings": len(speeches),
    }
    return result | judge(results, whole, other_cpu_share) | {"how": how, "levels": [describe_level(each) for each in results]}


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="audio of a stream (default: %(default)g)")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="numbers of streams (default: 1 2 4)")
    parser.add_argument("--silence-ms", type=int, nargs="+", default=SILENCES_MS, help="settings of it (default: 500 200)")
    add_data_flag(parser)
    add_results_flag(parser)
    add_server_flags(parser)
    arguments = parser.parse_args()
    try:
        result = run(arguments)
    except (ServerError, Refused) as error:
        print(f"live: {error}", file=sys.stderr)
        return 2
    print(write_report(result, arguments.out))
    return 1 if result["void"] else 0


if __name__ == "__main__":
    sys.exit(main())
