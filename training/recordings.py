"""Read the recordings of data sets: JSON-lines manifests beside their audio files."""

import json
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from models.protocols import Float32
from training.cache_states import DEV_SHARE

SAMPLE_RATE_HZ = 16_000


def read_rows(manifest: Path, sets: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Read the rows of a manifest; if sets are named, those of other sets are left out."""
    rows = map(json.loads, manifest.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if sets is None or row["set"] in sets]


def held_out_rank(row: dict[str, Any]) -> int:
    """Return 0 for a row that the adapter's training leaves out, and 1 to 24 for all others."""
    return zlib.crc32(Path(row["file"]).stem.encode()) % DEV_SHARE


def read_audio(path: Path) -> Float32:
    """Read mono audio at 16 kHz. Raises `ValueError` for another rate."""
    audio, rate_hz = soundfile.read(path, dtype="float32")
    if rate_hz != SAMPLE_RATE_HZ:
        raise ValueError(f"{path} is not at {SAMPLE_RATE_HZ} Hz")
    return np.asarray(audio, np.float32)
