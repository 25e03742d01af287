"""Measure the times of words against speech of which they are known, beside faster-whisper base on the same audio.

    python -m training.word_times --bundle BUNDLE --data DATA_DIR --whisper CT2_DIR --out training/results

Half of the synthetic speech and the held-out recordings of the training data are what the constants of
`models.text.word_times` are fitted to; the fit is printed. The figures come from the other half and from the evaluation
recordings. Writes `word_times.json`, `word_times.md` and `word_times.png`.
"""

import argparse
import difflib
import json
import random
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from models.assemble import load_models
from models.bundle.io import open_bundle
from models.chain import Models
from models.features.log_mel import SAMPLE_RATE_HZ
from models.protocols import Float32
from models.text.word_times import AFTER, BEFORE, PlacedWords, Reach, TimedWord
from training.cache_states import is_held_out
from training.cache_whisper import ServedWhisper
from training.evaluate import ENGLISH_SETS
from training.recordings import read_audio, read_rows
from training.timed_speech import (
    ESPEAK_VOICES,
    FLITE_VOICES,
    Espeak,
    ForcedAligner,
    Spoken,
    TimedClip,
    join,
    speak_with_flite,
)
from training.word_times_report import BOUNDS, KINDS, OURS, PEER, Error, markdown, plot, summary

Float64 = npt.NDArray[np.float64]
Transcriber = Callable[[Float32], Sequence[TimedWord]]

# Sentences that no adapter was trained on.
SENTENCES = "banking77.tsv"
DEV_SETS = ("libri_clean", "nonnative")
JOINED_SETS = ("vctk", "ljspeech", "libri_other")
JOINED_S = 20.0


@dataclass(frozen=True)
class Heard:
    """A clip, its words as the bundle has them, what these were made from, and how long their times took."""

    clip: TimedClip
    words: tuple[TimedWord, ...]
    middles: PlacedWords
    timing_s: float


class Listener:
    """A bundle with a speech decoder, one recording at a time: transcripts and their times as the engine makes them."""

    def __init__(self, models: Models) -> None:
        """Raises `ValueError` where the bundle tells no times or has no Whisper."""
        if models.word_timer is None:
            raise ValueError("the bundle's adapter cannot tell times")
        self._tokeniser = models.draft_tokeniser
        self._timer = models.word_timer
        self._whisper = ServedWhisper(models)

    def hear(self, clip: TimedClip) -> Heard:
        """Transcribe a clip and time its words."""
        audio = clip.audio
        heard = self._whisper(audio, "en")
        tokens = self._tokeniser.encode(heard.text)
        started_s = time.perf_counter()
        words = self._timer.times(heard.draft, audio, tokens, heard.text)
        timing_s = time.perf_counter() - started_s
        places = self._timer.place_words(heard.draft, tokens, heard.text, len(audio) / SAMPLE_RATE_HZ)
        return Heard(clip, words, places, timing_s)


def faster_whisper(folder: Path, threads: int) -> Transcriber:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)

    def transcribe(audio: Float32) -> list[TimedWord]:
        segments, _ = model.transcribe(audio, language="en", condition_on_previous_text=False, word_timestamps=True)
        return [TimedWord(word.word.strip(), word.start, word.end) for segment in segments for word in segment.words or ()]

    return transcribe


def read_recordings(data: Path, manifest: str, sets: Collection[str]) -> list[tuple[str, Float32, str]]:
    """Read set, audio and exact text of recordings; of the training data only those held out."""
    return [
        (row["set"], read_audio(data / row["file"]), row["text"])
        for row in read_rows(data / manifest, sets)
        if row["text"] and (manifest != "train.jsonl" or is_held_out(Path(row["file"]).stem))
    ]


def speak(data: Path, count: int, seed: int) -> list[TimedClip]:
    """Return `count` sentences, each by a voice of both synthesisers, which take turns."""
    rows = (data / "text" / SENTENCES).read_text(encoding="utf-8").splitlines()
    texts = sorted({row.split("\t")[-1].strip() for row in rows})
    usable = [text for text in texts if 20 < len(text) < 120 and re.fullmatch(r"[A-Za-z ,.?!']+", text)]
    espeak = Espeak()
    clips = []
    for place, text in enumerate(random.Random(seed).sample(usable, count)):
        clips.append(speak_with_flite(text, FLITE_VOICES[place % len(FLITE_VOICES)]))
        clips.append(espeak.speak(text, ESPEAK_VOICES[place % len(ESPEAK_VOICES)]))
    return clips


def plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def right(known: Sequence[Spoken], words: Sequence[TimedWord]) -> dict[int, int]:
    """Which of the known words were recognised right, and where each of these is among the recognised."""
    said, found = [plain(word.text) for word in known], [plain(word.text) for word in words]
    blocks = difflib.SequenceMatcher(a=said, b=found, autojunk=False).get_matching_blocks()
    return {block.a + place: block.b + place for block in blocks for place in range(block.size)}


def fit(clips: Sequence[Heard]) -> tuple[Reach, Reach]:
    """Return how far the words of these clips reach before the middle of their first token and after that of their last one."""
    before, after = [], []
    for heard in clips:
        middles = heard.middles
        for known, place in right(heard.clip.words, heard.words).items():
            word = heard.clip.words[known]
            if word.start_s is not None and word.end_s is not None:
                before.append((middles.first_letters[place], middles.first_s[place] - word.start_s))
                after.append((middles.last_letters[place], word.end_s - middles.last_s[place]))
    return line_through(np.array(before)), line_through(np.array(after))


def line_through(points: Float64) -> Reach:
    """Return the line with the least sum of absolute deviations from points [count, 2], by reweighted least squares."""
    inputs = np.stack([np.ones(len(points)), points[:, 0]], 1)
    weights = np.ones(len(points))
    for _ in range(50):
        line = np.linalg.lstsq(inputs * weights[:, None], points[:, 1] * weights, rcond=None)[0]
        weights = 1 / np.sqrt(np.maximum(np.abs(points[:, 1] - inputs @ line), 1e-3))
    return Reach(round(float(line[0]), 4), round(float(line[1]), 4))


def compare(clips: Sequence[Heard], peer: Transcriber) -> list[Error]:
    """Return the errors of both systems, at the words that both recognised right."""
    errors = []
    for heard in tqdm(clips, desc=PEER):
        theirs = peer(heard.clip.audio)
        our_places, their_places = right(heard.clip.words, heard.words), right(heard.clip.words, theirs)
        for known in our_places.keys() & their_places.keys():
            found = {OURS: heard.words[our_places[known]], PEER: theirs[their_places[known]]}
            errors += differences(heard.clip.kind, heard.clip.words[known], found)
    return errors


def differences(kind: str, known: Spoken, found: dict[str, TimedWord]) -> list[Error]:
    """At the bounds of a word that are known."""
    return [
        Error(kind, system, bound, getattr(word, bound) - getattr(known, bound))
        for system, word in found.items()
        for bound in BOUNDS
        if getattr(known, bound) is not None
    ]


def check_aligner(aligner: ForcedAligner, clips: Sequence[TimedClip]) -> list[Error]:
    """Return the errors of the forced aligner, where the times are exact."""
    errors = []
    for clip in clips:
        aligned = aligner.align(clip.kind, clip.audio, " ".join(word.text for word in clip.words))
        if aligned is not None and len(aligned.words) == len(clip.words):
            for found, known in zip(aligned.words, clip.words, strict=True):
                word = TimedWord(found.text, found.start_s or 0.0, found.end_s or 0.0)
                errors += differences(clip.kind, known, {"PocketSphinx": word})
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl, eval.jsonl and text/")
    parser.add_argument("--whisper", type=Path, required=True, help="Whisper base, CTranslate2 format, for faster-whisper")
    parser.add_argument("--sentences", type=int, default=120, help="spoken by each synthesiser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    aligner = ForcedAligner()
    spoken = speak(arguments.data, arguments.sentences, arguments.seed)
    dev = read_recordings(arguments.data, "train.jsonl", DEV_SETS)
    held_back = read_recordings(arguments.data, "eval.jsonl", ENGLISH_SETS)
    aligned_dev, aligned = (
        [clip for recording in tqdm(recordings, desc="alignment") if (clip := aligner.align(*recording))]
        for recordings in (dev, held_back)
    )
    to_join = [(audio, text) for name, audio, text in held_back if name in JOINED_SETS]
    # Two clips a sentence, one by each synthesiser.
    spoken_dev = [clip for place, clip in enumerate(spoken) if place % 4 < 2]
    measured = [clip for place, clip in enumerate(spoken) if place % 4 >= 2] + join(to_join, JOINED_S, arguments.seed) + aligned

    listener = Listener(load_models(open_bundle(arguments.bundle), slots=1, threads=arguments.threads))
    fitted = fit([listener.hear(clip) for clip in tqdm(spoken_dev + aligned_dev, desc="to fit to")])
    print(f"fitted: BEFORE {fitted[0]}, AFTER {fitted[1]}\nused:   BEFORE {BEFORE}, AFTER {AFTER}")
    ours = [listener.hear(clip) for clip in tqdm(measured, desc=OURS)]
    errors = compare(ours, faster_whisper(arguments.whisper, arguments.threads))
    joined_ms = [1000 * heard.timing_s for heard in ours if heard.clip.kind == "joined"]
    result = {
        "bundle": arguments.bundle.name,
        "date": time.strftime("%Y-%m-%d"),
        "clips": {kind: sum(clip.kind == kind for clip in measured) for kind in KINDS},
        "fitted_to_clips": len(spoken_dev) + len(aligned_dev),
        "fitted": {"before": asdict(fitted[0]), "after": asdict(fitted[1])},
        "used": {"before": asdict(BEFORE), "after": asdict(AFTER)},
        "errors": summary(errors),
        "forced_aligner": summary(check_aligner(aligner, spoken)),
        "timing_of_joined_ms": {"median": round(float(np.median(joined_ms)), 2), "longest": round(max(joined_ms), 2)},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "word_times.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "word_times.md").write_text(markdown(errors) + "\n")
    plot(errors, arguments.out / "word_times.png")
    print(markdown(errors))


if __name__ == "__main__":
    main()
