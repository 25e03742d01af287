"""Make the audio of the benchmark of spoken requests.

    python -m training.spoken_requests.speak --data DATA_DIR --models work/kokoro --out work/spoken_requests

Texts are spoken by Kokoro, with the voice and the speed of each request; recordings are copied from the data set. A second run
makes only what is missing. `--out` then holds `manifest.jsonl`, which `loadtest.answers` reads, and the audio beside it.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import soundfile
import soxr
from tqdm import tqdm

from training.spoken_requests.kokoro import RATE_HZ, Kokoro
from training.spoken_requests.request import SpokenRequest, read_requests, write_requests

REQUESTS = Path(__file__).parent / "requests.jsonl"
SAMPLE_RATE_HZ = 16_000


def make_audio(request: SpokenRequest, kokoro: Kokoro, data: Path, file: Path) -> None:
    """Write a request's audio to `file`, which appears whole."""
    partial = file.with_suffix(".partial")
    if request.recording is not None:
        shutil.copyfile(data / request.recording, partial)
    else:
        samples = kokoro.speak(request.text, request.voice or "", request.speed)
        soundfile.write(partial, soxr.resample(samples, RATE_HZ, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ, format="FLAC")
    partial.replace(file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=Path, default=REQUESTS)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with the recordings of eval.jsonl")
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER", help="where Kokoro is fetched to, 150 MB")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--half", default="reported")
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(arguments)
    parsed.out.mkdir(parents=True, exist_ok=True)
    requests = [request for request in read_requests(parsed.requests) if request.half == parsed.half]
    kokoro = Kokoro(parsed.models, parsed.threads)
    for request in tqdm(requests, desc="requests"):
        file = parsed.out / request.audio
        if not file.exists():
            make_audio(request, kokoro, parsed.data, file)
    write_requests(parsed.out / "manifest.jsonl", requests)


if __name__ == "__main__":
    main()
