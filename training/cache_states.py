"""Run the frozen encoder once over a manifest and keep its states, so that training never waits for it.

    python -m training.cache_states --manifest work/real/manifest.jsonl --encoder CT2_DIR/model.bin --out work/cache/real
    python -m training.cache_states ... --augment-seed 1 --out work/cache/real-1      # an augmented copy
    python -m training.cache_states --manifest … --bundle BUNDLE --out …    # as a bundle's encoder hears: silence behind

Output: `states.f16`, every utterance's [frames, width] one after the other, and `index.jsonl`. A second run goes on
where the first stopped; training may read a cache that is still being written.
"""

import argparse
import fcntl
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch
from tqdm import tqdm

from models.assemble import load_models
from models.bundle.io import open_bundle
from models.features.log_mel import SAMPLE_RATE_HZ, log_mel
from models.protocols import Float32
from training.augment import augment
from training.manifest import Utterance, read_manifest
from training.whisper_encoder import WhisperEncoder

WIDTH = 512
MIN_SECONDS, MAX_SECONDS = 0.1, 29.5
"""Shorter and longer recordings are left out."""
INDEX, STATES = "index.jsonl", "states.f16"
DEV_SHARE = 25
JOINED = "+"
"""Stands between the ids of utterances that were joined into one; those of the held-out part never are."""


@dataclass(frozen=True)
class CachedUtterance:
    """The place of an utterance's states, and its text.

    A cache that Whisper's decoder labelled also has that decoder's `tokens`, their mean log-probability and the recording's own
    text, as far as it has one.
    """

    id: str
    text: str
    dataset: str
    offset: int
    frames: int
    tokens: Sequence[int] = ()
    reference: str = ""
    mean_log_probability: float = 0.0


def is_held_out(id: str) -> bool:
    """Return whether an utterance belongs to the part that nothing is trained on: a fixed one in 25, none of the joined ones."""
    return JOINED not in id and zlib.crc32(id.encode()) % DEV_SHARE == 0


def read_index(folder: Path) -> list[CachedUtterance]:
    """Utterances that are completely written. A line that is still being written is left out."""
    lines = (folder / INDEX).read_text().split("\n")[:-1]
    return [CachedUtterance(**json.loads(line)) for line in lines]


def open_states(folder: Path, frames: int, width: int = WIDTH) -> npt.NDArray[np.float16]:
    return np.memmap(folder / STATES, np.float16, "r", shape=(frames, width))


def load_audio(path: Path) -> Float32:
    """Return a recording in mono at 16 kHz."""
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    mono = np.ascontiguousarray(samples.mean(axis=1))
    return mono if rate_hz == SAMPLE_RATE_HZ else np.asarray(soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ), np.float32)


def states_of(
    utterances: Sequence[Utterance], root: Path, encode: Callable[[Float32], Float32], augment_seed: int | None = None
) -> Iterator[tuple[Utterance, npt.NDArray[np.float16]]]:
    for utterance in tqdm(utterances, desc="encoder states", mininterval=5):
        audio = load_audio(root / utterance.audio)
        if augment_seed is not None:
            audio = augment(audio, np.random.default_rng([augment_seed, zlib.crc32(utterance.id.encode())]))
        if MIN_SECONDS <= len(audio) / SAMPLE_RATE_HZ <= MAX_SECONDS:
            yield utterance, encode(audio).astype(np.float16)


class CacheWriter:
    """Appends to a cache; `done` are the ids that it holds."""

    def __init__(self, known: list[CachedUtterance], states_file: IO[bytes], index_file: IO[str], width: int) -> None:
        self.done = {entry.id for entry in known}
        self.frames = sum(entry.frames for entry in known)
        self._states_file, self._index_file = states_file, index_file
        # States without an entry are of a process that was killed.
        states_file.truncate(self.frames * width * 2)
        states_file.seek(0, 2)

    def append(self, entry: CachedUtterance, states: npt.NDArray[np.float16]) -> None:
        """Write an utterance; the entry's place and length are those that its states get."""
        self._states_file.write(states.tobytes())
        self._states_file.flush()
        self._index_file.write(json.dumps(asdict(replace(entry, offset=self.frames, frames=len(states)))) + "\n")
        self._index_file.flush()
        self.frames += len(states)


@contextmanager
def open_cache(folder: Path, width: int = WIDTH) -> Iterator[CacheWriter]:
    """Open a cache to append to, new or begun. Raises `BlockingIOError` where another process writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    index_path, states_path = folder / INDEX, folder / STATES
    index_path.touch()
    states_path.touch()
    with (folder / "lock").open("w") as lock, states_path.open("r+b") as states_file, index_path.open("a") as index_file:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield CacheWriter(read_index(folder), states_file, index_file, width)


def torch_encoder(path: Path) -> Callable[[Float32], Float32]:
    """Return Whisper's encoder in bfloat16, which hears the audio alone."""
    encoder = WhisperEncoder(path, torch.bfloat16)

    def encode(audio: Float32) -> Float32:
        states: Float32 = encoder(torch.from_numpy(log_mel(audio))).numpy()
        return states

    return encode


def served_encoder(folder: Path, threads: int) -> Callable[[Float32], Float32]:
    """Return a bundle's encoder as it serves: it hears silence behind the audio, whose own states alone are kept."""
    models = load_models(open_bundle(folder), 1, threads)

    def encode(audio: Float32) -> Float32:
        states = models.encode_alone(audio)
        result: Float32 = states if models.padding is None else states[: models.padding.own_states(len(audio))]
        return result

    return encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--encoder", type=Path, help="CTranslate2 model.bin of Whisper")
    source.add_argument("--bundle", type=Path, help="a folder with Whisper, whose encoder is run as it serves")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--augment-seed", type=int, help="write an augmented copy made with this seed, of what is not held out")
    parser.add_argument("--datasets", nargs="*", help="only these datasets of the manifest")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with open_cache(arguments.out) as cache:
        todo = [
            u
            for u in read_manifest(arguments.manifest)
            if u.id not in cache.done
            and (not arguments.datasets or u.dataset in arguments.datasets)
            and (arguments.augment_seed is None or not is_held_out(u.id))
        ]
        encode = torch_encoder(arguments.encoder) if arguments.encoder else served_encoder(arguments.bundle, arguments.threads)
        for utterance, states in states_of(todo, arguments.manifest.parent, encode, arguments.augment_seed):
            cache.append(CachedUtterance(utterance.id, utterance.text, utterance.dataset, 0, 0), states)
        print(f"{len(read_index(arguments.out))} utterances, {cache.frames / 50 / 3600:.2f} h")


if __name__ == "__main__":
    main()
