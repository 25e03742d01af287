"""Read the recordings of data sets: JSON-lines manifests beside their audio files."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from models.features.log_mel import SAMPLE_RATE_HZ
from models.protocols import Float32


def read_rows(manifest: Path, sets: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Read the rows of a manifest; if sets are named, those of other sets are left out."""
    rows = map(json.loads, manifest.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if sets is None or row["set"] in sets]


def read_audio(path: Path) -> Float32:
    """Read mono audio at 16 kHz. Raises `ValueError` for another rate."""
    audio, rate_hz = soundfile.read(path, dtype="float32")
    if rate_hz != SAMPLE_RATE_HZ:
        raise ValueError(f"{path} is not at {SAMPLE_RATE_HZ} Hz")
    return np.asarray(audio, np.float32)
