"""Clips of given lengths, made from real recordings by cutting and joining."""

import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

Float32 = npt.NDArray[np.float32]
RATE_HZ = 16_000
JOIN_TRIES = 200
HOW = (
    "A clip of a given length is a piece of a real recording that is at least as long, from its beginning or after another such "
    "piece; where there are too few of those, recordings joined end to end and cut. So a clip may end within a word."
)


@dataclass(frozen=True)
class Recording:
    """Real speech at 16 kHz and its text."""

    name: str
    text: str
    samples: Float32

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE_HZ


@dataclass(frozen=True)
class BenchClip:
    """A WAV file to send. `text` is empty where the words are not known because the clip was cut."""

    name: str
    path: Path
    audio: bytes
    seconds: float
    text: str = ""


def read_rows(manifest: Path, language: str | None = None) -> list[dict[str, Any]]:
    """Read a data set's manifest: JSON lines, each with at least the `file` of a recording beside it.

    If a language is named, rows of other languages are left out; rows that name none are English.
    """
    rows = map(json.loads, manifest.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if language is None or row.get("language", "en") == language]


def take_per_set(rows: Iterable[dict[str, Any]], per_set: int) -> list[dict[str, Any]]:
    """Return the first `per_set` rows of each set."""
    counts: Counter[str] = Counter()
    taken = []
    for row in rows:
        if counts[row["set"]] < per_set:
            counts[row["set"]] += 1
            taken.append(row)
    return taken


def read_recordings(data: Path | None, clips: Path, limit: int) -> list[Recording]:
    """Read up to `limit` English recordings of `data`/eval.jsonl, spread over it; without `data` those of the index `clips`.

    Raises `ValueError` if a recording is not mono at 16 kHz.
    """
    if data is None:
        rows, folder = json.loads(clips.read_text(encoding="utf-8")), clips.parent
    else:
        rows, folder = [row for row in read_rows(data / "eval.jsonl", "en") if row["text"].split()], data
        rows = [rows[index] for index in np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)]
    recordings = []
    for row in rows:
        samples, rate_hz = soundfile.read(folder / row["file"], dtype="float32")
        if rate_hz != RATE_HZ or samples.ndim != 1:
            raise ValueError(f"{row['file']} is not mono at {RATE_HZ} Hz")
        recordings.append(Recording(Path(row["file"]).stem, row["text"], samples))
    return recordings


def cut_to_length(recordings: list[Recording], seconds: float, count: int) -> list[tuple[str, Float32]]:
    """Return up to `count` different pieces of speech, `seconds` long each, with their names; fewer where no more can be made."""
    wanted = round(seconds * RATE_HZ)
    candidates = itertools.chain(_windows(recordings, wanted), _joins(recordings, wanted))
    pieces: dict[bytes, tuple[str, Float32]] = {}
    for name, piece in candidates:
        pieces.setdefault(piece.tobytes(), (name, piece))
        if len(pieces) == count:
            break
    return list(pieces.values())


def _windows(recordings: list[Recording], wanted: int) -> Iterator[tuple[str, Float32]]:
    """Yield the beginnings of all recordings, the shortest first, then what follows these, and so on."""
    by_length = sorted(recordings, key=lambda recording: len(recording.samples))
    longest = len(by_length[-1].samples)
    for start in range(0, longest - wanted + 1, wanted):
        for recording in by_length:
            if start + wanted <= len(recording.samples):
                yield f"{recording.name} from {start / RATE_HZ:g} s", recording.samples[start : start + wanted]


def _joins(recordings: list[Recording], wanted: int) -> Iterator[tuple[str, Float32]]:
    """Yield recordings end to end in one order after the other, from the beginning again where they are too short together."""
    for number in range(JOIN_TRIES):
        order = np.random.default_rng(number).permutation(len(recordings))
        yield f"join {number}", np.resize(np.concatenate([recordings[place].samples for place in order]), wanted)


def write_clip(folder: Path, name: str, samples: Float32, text: str = "") -> BenchClip:
    """Write a clip as 16-bit WAV."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE_HZ, format="WAV", subtype="PCM_16")
    path = folder / f"{name.replace('/', '_').replace(' ', '_').replace(',', '')}.wav"
    path.write_bytes(buffer.getvalue())
    return BenchClip(name, path, buffer.getvalue(), len(samples) / RATE_HZ, text)


def make_clips(recordings: list[Recording], lengths_s: list[float], count: int, folder: Path) -> dict[float, list[BenchClip]]:
    """Return up to `count` clips for each length."""
    return {
        seconds: [
            write_clip(folder, f"{seconds:g}s-{number} {name}", samples)
            for number, (name, samples) in enumerate(cut_to_length(recordings, seconds, count))
        ]
        for seconds in lengths_s
    }
