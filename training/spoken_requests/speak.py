"""Make the audio of the benchmark of spoken requests.

    python -m training.spoken_requests.speak --data DATA_DIR --models work/kokoro --out work/spoken_requests

Texts are spoken by Kokoro, with the voice and the speed of each request; recordings are copied from the data set. A second run
makes only what is missing. All kinds grow evenly, so that a run with `--minutes` makes a smaller benchmark of the same kinds.
`--out` then holds the audio and `manifest.jsonl`, the requests whose audio is there, which `loadtest.answers` reads.
"""

import argparse
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import soundfile
import soxr
from tqdm import tqdm

from models.features.log_mel import SAMPLE_RATE_HZ
from training.spoken_requests.kokoro import RATE_HZ, Kokoro
from training.spoken_requests.request import SpokenRequest, read_requests, write_requests

REQUESTS = Path(__file__).parent / "requests.jsonl"


def make_audio(request: SpokenRequest, kokoro: Kokoro, data: Path, file: Path) -> None:
    """Write the audio of a request to `file`, which appears whole."""
    partial = file.with_suffix(".partial")
    if request.recording is not None:
        shutil.copyfile(data / request.recording, partial)
    else:
        samples = kokoro.speak(request.text, request.voice or "", request.speed)
        soundfile.write(partial, soxr.resample(samples, RATE_HZ, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ, format="FLAC")
    partial.replace(file)


def spread_kinds(requests: Sequence[SpokenRequest]) -> list[SpokenRequest]:
    """Return the requests in an order in which the first of them have each kind in proportion."""
    totals, seen = Counter(request.kind for request in requests), Counter[str]()
    places = []
    for request in requests:
        places.append(seen[request.kind] / totals[request.kind])
        seen[request.kind] += 1
    return [request for _, request in sorted(zip(places, requests, strict=True), key=lambda pair: pair[0])]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=Path, default=REQUESTS)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with the recordings of eval.jsonl")
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER", help="where Kokoro is fetched to, 150 MB")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--half", default="reported")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no more audio after so long")
    parsed = parser.parse_args(arguments)
    parsed.out.mkdir(parents=True, exist_ok=True)
    requests = [request for request in read_requests(parsed.requests) if request.half == parsed.half]
    kokoro = Kokoro(parsed.models, parsed.threads)
    started_s = time.monotonic()
    for request in tqdm(spread_kinds(requests), desc="requests"):
        file = parsed.out / request.audio
        is_in_time = time.monotonic() - started_s < 60 * parsed.minutes
        if not file.exists() and (is_in_time or request.recording is not None):
            make_audio(request, kokoro, parsed.data, file)
    write_requests(parsed.out / "manifest.jsonl", [request for request in requests if (parsed.out / request.audio).exists()])


if __name__ == "__main__":
    main()
