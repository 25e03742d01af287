"""Run frozen Whisper once over training recordings: keep its encoder states and the tokens that its own decoder writes.

    python -m training.cache_whisper --data DATA_DIR --bundle BUNDLE --out work/cache/whisper
    python -m training.cache_whisper ... --augment-seed 1 --out work/cache/whisper-1      # an augmented copy

A draft is there to be verified by Whisper's decoder, so what it learns is what that decoder writes, greedy and without
timestamps, whatever the recording's own text is; that is kept beside it as `reference`. Both parts are a bundle's own, so the
states are those that its adapter reads when served, and the tokens those that its decoder writes; the bundle's present draft
saves passes. Only the states of the recording's own length are kept. Held-out recordings come first, then the rest shuffled.
Short recordings of one speaker outside the held-out part are joined, with a pause between them, which costs a third of the
time. A second run goes on where the first stopped; training may read a cache that is still being written.
"""

import argparse
import random
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from models.assemble import load_models
from models.bundle.io import open_bundle
from models.chain import Models
from models.features.log_mel import SAMPLE_RATE_HZ
from models.protocols import CtcDraft, Float32
from models.text.prefix_draft import PrefixDraft
from training.augment import augment
from training.cache_states import JOINED, MAX_SECONDS, CachedUtterance, is_held_out, open_cache, read_index
from training.greedy_writer import write_greedily
from training.recordings import read_audio, read_rows

JOINED_SETS = ("nonnative", "kathleen", "dutch", "synthesis")
JOINED_MAX_S = 12.0
PAUSE_S = 0.4


@dataclass(frozen=True)
class Recording:
    """One piece of audio to encode: a file of the manifest, or several of one speaker in a row."""

    id: str
    files: list[str]
    dataset: str
    reference: str
    duration_s: float
    language: str = "en"


def plan(rows: list[dict[str, Any]], seed: int = 0) -> list[Recording]:
    """Return the recordings to encode, the held-out ones first, then the rest shuffled."""
    single, short = [], defaultdict(list)
    for row in rows:
        about = row["set"], row["text"] or "", row["duration_s"], row.get("language", "en")
        recording = Recording(Path(row["file"]).stem, [row["file"]], *about)
        if row["set"].startswith(JOINED_SETS) and not is_held_out(recording.id):
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
    return sorted(rest, key=lambda each: not is_held_out(each.id))


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
        parts[0].language,
    )


def load_recording(recording: Recording, data: Path) -> Float32:
    pieces: list[Float32] = []
    for file in recording.files:
        if pieces:
            pieces.append(np.zeros(int(PAUSE_S * SAMPLE_RATE_HZ), np.float32))
        pieces.append(read_audio(data / file))
    return np.concatenate(pieces)


@dataclass(frozen=True)
class Heard:
    """A recording's own encoder states [states, width], its draft, and what the decoder wrote, with its mean log-probability."""

    states: Float32
    draft: CtcDraft
    tokens: tuple[int, ...]
    text: str
    mean_log_probability: float


class ServedWhisper:
    """Whisper as a bundle serves it, one recording at a time, but for what `write_greedily` leaves out."""

    def __init__(self, models: Models) -> None:
        if models.padding is None:
            raise ValueError("the bundle's encoder hears no silence behind the audio, so it is no Whisper")
        if models.draft_vocabulary != "speech_decoder":
            raise ValueError("the bundle's draft is not in the tokens of its speech decoder")
        self.models, self.padding = models, models.padding
        self.speech = models.require_speech()

    def __call__(self, audio: Float32, language: str) -> Heard:
        """Return what is heard and written of a recording in a language."""
        states = self.models.encode_alone(audio)
        (output,) = self.models.project([states], [len(audio)])
        draft = output.require_draft()
        written = write_greedily(self.speech, states, PrefixDraft(draft).propose, language)
        own = states[: self.padding.own_states(len(audio))]
        return Heard(own, draft, written.tokens, written.text.strip(), written.mean_logprob)


def heard_audio(recording: Recording, data: Path, augment_seed: int | None) -> Float32:
    audio = load_recording(recording, data)
    if augment_seed is None:
        return audio
    return augment(audio, np.random.default_rng([augment_seed, zlib.crc32(recording.id.encode())]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--bundle", type=Path, required=True, help="a folder with Whisper and a draft for it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--augment-seed", type=int, help="write an augmented copy made with this seed, of what is not held out")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    recordings = plan(read_rows(arguments.data / "train.jsonl"))
    is_copy = arguments.augment_seed is not None
    with open_cache(arguments.out) as cache:
        whisper = ServedWhisper(load_models(open_bundle(arguments.bundle), 1, arguments.threads))
        wanted = [each for each in recordings if each.duration_s < MAX_SECONDS and not (is_copy and is_held_out(each.id))]
        todo = [each for each in wanted if each.id not in cache.done]
        for recording in tqdm(todo, desc="encoder states and tokens", mininterval=10):
            heard = whisper(heard_audio(recording, arguments.data, arguments.augment_seed), recording.language)
            about = heard.tokens, recording.reference, heard.mean_log_probability
            entry = CachedUtterance(recording.id, heard.text, recording.dataset, 0, 0, *about)
            cache.append(entry, heard.states.astype(np.float16))
        print(f"{len(read_index(arguments.out))} recordings, {cache.frames / 50 / 3600:.2f} h")


if __name__ == "__main__":
    main()
