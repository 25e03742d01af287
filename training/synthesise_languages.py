"""Speak Spanish, French, German and Italian sentences with Kokoro and espeak-ng, for a draft that has heard English alone.

    python -m training.synthesise_languages --text TEXT_DIR --models work/kokoro --out work/languages --seed 0
    python -m training.cache_whisper --data work/languages --bundle BUNDLE --out work/cache/languages

Needs the program `espeak-ng` on PATH. Kokoro has too few voices of most languages, so a voice of another language reads them
with an accent, and none of those that `training.spoken_requests` is measured with. Writes `train.jsonl` as the recordings have
it, with the language of each, which Whisper's decoder is told. A second run speaks only what is missing.
"""

import argparse
import json
import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import soundfile
import soxr
from tqdm import tqdm

from models.features.log_mel import SAMPLE_RATE_HZ
from models.protocols import Float32
from training.spoken_requests.kokoro import RATE_HZ, Kokoro
from training.synthesise import ESPEAK_TIMBRES, decode_streamed_wav

ACCENTS = {"es": ("es", "es-419"), "fr": ("fr-fr", "fr-be", "fr-ch"), "de": ("de",), "it": ("it",)}
"""espeak-ng's names by language. Kokoro's phonemes are those of the first."""
KOKORO_VOICES = (
    "em_santa",
    "pf_dora",
    "pm_alex",
    "pm_santa",
    "af_heart",
    "af_sarah",
    "am_adam",
    "am_eric",
    "bf_alice",
    "bm_fable",
)
CHARACTERS = range(12, 140)


@dataclass(frozen=True)
class Job:
    """A sentence to be spoken by an engine's voice."""

    language: str
    number: int
    text: str
    engine: str
    voice: str
    speed: float

    @property
    def file(self) -> str:
        return f"audio/{self.language}-{self.engine}-{self.number:05d}.flac"


def read_sentences(folder: Path, language: str) -> list[str]:
    """Return the sentences of a language without digits; of a TSV the last column."""
    names = f"common_voice.{language}.txt", f"tatoeba.en-{language}.tsv"
    lines = [line for name in names for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    texts = (re.sub(r"\s+", " ", line.split("\t")[-1]).strip() for line in lines)
    return sorted({text for text in texts if len(text) in CHARACTERS and not re.search(r"[\d<>\[\]{}|]", text)})


def plan(folder: Path, counts: dict[str, int], seed: int) -> Iterator[Job]:
    """Yield what is to be spoken, all languages and engines mixed. `counts` are sentences of each language by engine."""
    rng, jobs = random.Random(seed), list[Job]()
    for language, accents in ACCENTS.items():
        engines = [engine for engine, count in counts.items() for _ in range(count)]
        texts = rng.sample(read_sentences(folder, language), len(engines))
        for number, (engine, text) in enumerate(zip(engines, texts, strict=True)):
            timbre = f"{rng.choice(accents)}+{rng.choice(ESPEAK_TIMBRES)}"
            voice = rng.choice(KOKORO_VOICES) if engine == "kokoro" else timbre
            jobs.append(Job(language, number, text, engine, voice, rng.uniform(0.85, 1.2)))
    rng.shuffle(jobs)
    yield from jobs


class Speaker:
    """Both engines; Kokoro is loaded when it first speaks."""

    def __init__(self, models: Path) -> None:
        self._models = models

    def speak(self, job: Job) -> tuple[Float32, int]:
        """Return samples, and their rate in Hz."""
        if job.engine == "kokoro":
            return self._kokoro.speak(job.text, job.voice, job.speed, ACCENTS[job.language][0]), RATE_HZ
        command = ["espeak-ng", "-v", job.voice, "-s", str(round(150 * job.speed)), "--stdout", "--", job.text]
        wav = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        return decode_streamed_wav(wav)

    @cached_property
    def _kokoro(self) -> Kokoro:
        return Kokoro(self._models, threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER", help="where Kokoro is fetched to, 150 MB")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--espeak", type=int, default=600, help="sentences of each language")
    parser.add_argument("--kokoro", type=int, default=60, help="sentences of each language")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    (arguments.out / "audio").mkdir(parents=True, exist_ok=True)
    speaker, rows = Speaker(arguments.models), []
    counts = {"espeak": arguments.espeak, "kokoro": arguments.kokoro}
    for job in tqdm(list(plan(arguments.text, counts, arguments.seed)), desc="synthesis", mininterval=10):
        path = arguments.out / job.file
        if not path.exists():
            samples, rate_hz = speaker.speak(job)
            partial = path.with_suffix(".partial")
            soundfile.write(partial, soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ, format="FLAC")
            partial.replace(path)
        about = {"set": f"synthesis_{job.language}", "speaker": f"{job.engine}-{job.voice}", "language": job.language}
        rows.append({"file": job.file, "text": job.text, "duration_s": soundfile.info(path).duration, **about})
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (arguments.out / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(rows)} sentences, {sum(row['duration_s'] for row in rows) / 3600:.2f} h")


if __name__ == "__main__":
    main()
