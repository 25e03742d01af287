"""Find the true beginning and end of speech in a recording, by its loudness alone, so that latencies count from the file.

The level of every 10 ms is compared with a threshold: 35 dB under the voice's loud parts or 8 dB over the quietest ones,
whichever is more. Sounds above it that are less than 0.1 s apart are one, and such a stretch is speech where it gets loud for
50 ms (20 dB under the loud parts): a click, a breath or hiss on its own is not. This needs one voice in a steady room.
In one that is noisy, or where the voice fades, no such rule is exact; so the bounds come with their doubt: how far they move
where the threshold is 10 dB higher. Latencies should be counted on recordings with little of it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FRAME_S = 0.01
SHORTEST_S = 0.03
JOINED_BELOW_S = 0.1
LOUD_FOR_S = 0.05
BELOW_VOICE_DB = 35.0
ABOVE_ROOM_DB = 8.0
LOUD_BELOW_VOICE_DB = 20.0
NEAREST_TO_VOICE_DB = 10.0
DOUBT_DB = 10.0
VOICE_RANGE_DB, VOICE_PERCENTILE = 30.0, 90
ROOM_PERCENTILE = 5
SILENCE_DB = -70.0
"""Below full scale; a recording that never gets louder has no speech."""


@dataclass(frozen=True)
class SpeechBounds:
    """Seconds from the recording's beginning; `doubt_s` is how uncertain the less certain of both is."""

    start_s: float
    end_s: float
    doubt_s: float


def find_speech(samples: npt.NDArray[np.float32], rate_hz: int) -> SpeechBounds:
    """Return the bounds of the speech in mono samples within +-1. Raises `ValueError` where there is none."""
    levels_db = _levels_db(samples, round(FRAME_S * rate_hz))
    if len(levels_db) == 0 or levels_db.max() < SILENCE_DB:
        raise ValueError("the recording is silent")
    voice_db = float(np.percentile(levels_db[levels_db > levels_db.max() - VOICE_RANGE_DB], VOICE_PERCENTILE))
    room_db = float(np.percentile(levels_db, ROOM_PERCENTILE))
    threshold_db = max(voice_db - BELOW_VOICE_DB, room_db + ABOVE_ROOM_DB)
    start, end = _bounds(levels_db, threshold_db, voice_db)
    later_start, earlier_end = _bounds(levels_db, threshold_db + DOUBT_DB, voice_db)
    doubt = max(abs(later_start - start), abs(end - earlier_end))
    return SpeechBounds(start * FRAME_S, end * FRAME_S, doubt * FRAME_S)


def _levels_db(samples: npt.NDArray[np.float32], frame: int) -> npt.NDArray[np.float64]:
    """Return the level of each whole frame, in decibels below full scale."""
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame).astype(np.float64)
    levels: npt.NDArray[np.float64] = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    return levels


def _bounds(levels_db: npt.NDArray[np.float64], threshold_db: float, voice_db: float) -> tuple[int, int]:
    """Return the first frame of speech and the one after its last."""
    threshold_db = min(threshold_db, voice_db - NEAREST_TO_VOICE_DB)
    is_loud = levels_db > max(threshold_db, voice_db - LOUD_BELOW_VOICE_DB)
    speech = [
        (start, end)
        for start, end in _sounds(levels_db > threshold_db)
        if any(stop - begin >= LOUD_FOR_S / FRAME_S for begin, stop in _runs(is_loud[start:end]))
    ]
    if not speech:
        raise ValueError("the recording has no sound that lasts")
    return speech[0][0], speech[-1][1]


def _sounds(is_sound: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Stretches of sound, with short gaps bridged and the shortest blips left out."""
    sounds: list[tuple[int, int]] = []
    for start, end in _runs(is_sound):
        if end - start < SHORTEST_S / FRAME_S:
            continue
        if sounds and start - sounds[-1][1] < JOINED_BELOW_S / FRAME_S:
            start = sounds.pop()[0]
        sounds.append((start, end))
    return sounds


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the runs of flags that are set: the first place and the one after the last, for each run."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags, [0]))))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
