"""Run frozen Whisper once over the training recordings: keep its encoder states and the tokens that its own decoder writes.

    python -m training.cache_whisper --data DATA_DIR --whisper CT2_DIR --out work/cache/whisper-0 --part 0 --parts 2

A draft is there to be verified by Whisper's decoder, so what it learns is what that decoder writes, greedy and without
timestamps, whatever the recording's own text is; that is kept beside it as `reference`. The encoder hears a recording as it does
when served: with zeros behind it up to a floor. Only the states of the recording's own length are kept. Held-out recordings come
first, then read speech, then the rest. Short recordings of one speaker outside the held-out part are joined, with a pause
between them, which costs a third of the time. A second run goes on where the first stopped; training may read a cache
that is still being written.
"""

import argparse
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from tqdm import tqdm

from models.chain import Hearing
from models.encoders.whisper import STATES_PER_S
from models.features.log_mel import SAMPLE_RATE_HZ, log_mel
from training.cache_states import CachedUtterance, open_cache, read_index
from training.data import JOINED, REDUCTION, is_held_out

HEARING = Hearing(10.0, 3.0, math.inf, SAMPLE_RATE_HZ, REDUCTION, REDUCTION / STATES_PER_S)
"""At least 10 s in all and 3 s of silence: the served encoder hears a condensed window of 30 s (`SilentRest`), which is nearer to
Whisper's own and gives the adapter much the same states."""

JOINED_SETS = ("nonnative", "kathleen")
JOINED_MAX_S = 12.0
PAUSE_S = 0.4
FIRST_SETS = ("libri_clean", "libri_clean_5", "libri_clean_unlabelled")
BATCH = 8
CHUNK = 160
ENGLISH_PROMPT = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
MAX_TOKENS = 224

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """One piece of audio to encode: a file of the manifest, or several of one speaker in a row."""

    id: str
    files: list[str]
    dataset: str
    reference: str
    duration_s: float


def pad_for_whisper(audio: Float32) -> Float32:
    """The recording with at least 3 s of zeros behind it, at least 10 s in all."""
    return HEARING.pad_audio(audio)


def own_states(samples: int) -> int:
    """How many encoder states (50 a second) belong to a recording of so many samples, a multiple of the adapter's reduction."""
    return HEARING.own_states(samples)


def plan(rows: list[dict[str, Any]], seed: int = 0) -> list[Recording]:
    """Return the recordings to encode, the most useful first: held-out recordings, then read speech, then the rest shuffled."""
    single, short = [], defaultdict(list)
    for row in rows:
        recording = Recording(Path(row["file"]).stem, [row["file"]], row["set"], row["text"] or "", row["duration_s"])
        if row["set"] in JOINED_SETS and not is_held_out(recording.id):
            short[row["set"], row["speaker"]].append(recording)
        else:
            single.append(recording)
    rng = random.Random(seed)
    joined = []
    for group in short.values():
        rng.shuffle(group)
        joined += list(join(group))
    rest = single + joined
    rng.shuffle(rest)
    return sorted(rest, key=lambda each: (not is_held_out(each.id), each.dataset not in FIRST_SETS))


def join(recordings: list[Recording]) -> Iterator[Recording]:
    """Recordings of one speaker, as many in a row as make up to 12 s."""
    held: list[Recording] = []
    for recording in recordings:
        if held and sum(each.duration_s + PAUSE_S for each in held) + recording.duration_s > JOINED_MAX_S:
            yield _joined(held)
            held = []
        held.append(recording)
    if held:
        yield _joined(held)


def _joined(parts: list[Recording]) -> Recording:
    return Recording(
        JOINED.join(part.id for part in parts),
        [file for part in parts for file in part.files],
        parts[0].dataset,
        " ".join(part.reference for part in parts),
        sum(part.duration_s for part in parts) + PAUSE_S * (len(parts) - 1),
    )


def load_recording(recording: Recording, data: Path) -> Float32:
    pieces: list[Float32] = []
    for file in recording.files:
        samples, rate_hz = soundfile.read(data / file, dtype="float32")
        if rate_hz != SAMPLE_RATE_HZ:
            raise ValueError(f"{file}: training audio must be at 16 kHz, this is at {rate_hz} Hz")
        if pieces:
            pieces.append(np.zeros(int(PAUSE_S * SAMPLE_RATE_HZ), np.float32))
        pieces.append(samples)
    return np.concatenate(pieces)


def batches(recordings: list[Recording], data: Path) -> Iterator[list[tuple[Recording, Float32]]]:
    """Recordings with their audio, in batches that are padded to one length."""
    for start in range(0, len(recordings), CHUNK):
        by_length = defaultdict(list)
        for recording in recordings[start : start + CHUNK]:
            audio = load_recording(recording, data)
            by_length[len(pad_for_whisper(audio))].append((recording, audio))
        for group in by_length.values():
            for first in range(0, len(group), BATCH):
                yield group[first : first + BATCH]


class WhisperTeacher:
    """Whisper in CTranslate2: the encoder in float32, the decoder in int8."""

    def __init__(self, folder: Path, threads: int) -> None:
        import ctranslate2
        from tokenizers import Tokenizer

        self.view = ctranslate2.StorageView
        self.encoder = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=threads)
        self.decoder = ctranslate2.models.Whisper(str(folder), compute_type="int8", intra_threads=threads)
        self.tokeniser = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def __call__(self, audio: list[Float32]) -> list[tuple[Float32, list[int], float]]:
        """Of each recording its own states [states, width], the decoder's tokens, and their mean log-probability."""
        mels = np.stack([log_mel(pad_for_whisper(each)) for each in audio])
        encoded = self.encoder.encode(self.view.from_array(mels))
        results = self.decoder.generate(
            encoded, [ENGLISH_PROMPT] * len(audio), beam_size=1, return_scores=True, max_length=MAX_TOKENS
        )
        states = np.array(encoded)
        return [
            (states[row, : own_states(len(each))], result.sequences_ids[0], float(result.scores[0]))
            for row, (each, result) in enumerate(zip(audio, results, strict=True))
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--whisper", type=Path, required=True, help="Whisper in CTranslate2's format, with tokenizer.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", type=int, default=0, help="which of the parts this process does")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in (arguments.data / "train.jsonl").read_text().splitlines()]
    with open_cache(arguments.out) as cache:
        todo = [each for each in plan(rows)[arguments.part :: arguments.parts] if each.id not in cache.done]
        teacher = WhisperTeacher(arguments.whisper, arguments.threads)
        progress = tqdm(total=len(todo), desc="encoder states and tokens", mininterval=10)
        for batch in batches(todo, arguments.data):
            results = teacher([audio for _, audio in batch])
            for (recording, _), (states, tokens, score) in zip(batch, results, strict=True):
                text = teacher.tokeniser.decode(tokens).strip()
                about = tuple(tokens), recording.reference, score
                entry = CachedUtterance(recording.id, text, recording.dataset, 0, 0, *about)
                cache.append(entry, states.astype(np.float16))
            progress.update(len(batch))
        print(f"{len(read_index(arguments.out))} recordings, {cache.frames / 50 / 3600:.2f} h")


if __name__ == "__main__":
    main()
