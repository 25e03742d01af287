"""Recordings one after the other with pauses between them: what a session, or a long file, is made of."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile

from loadtest.live.figures import Spoken
from loadtest.support.recordings import RATE_HZ, Recording
from loadtest.support.speech_bounds import SpeechBounds, find_speech

Int16 = npt.NDArray[np.int16]
LEAD_S = 1.0
PAUSES_S = (1.5, 2.5)
NOISE_DB = -74.0
"""Of the room, below full scale, under everything: about six steps of 16-bit audio."""
MAX_DOUBT_S = 0.1


@dataclass(frozen=True)
class Speech:
    """A recording whose speech has clear bounds."""

    recording: Recording
    bounds: SpeechBounds


@dataclass(frozen=True)
class StreamAudio:
    """Samples at 16 kHz and what is said in them."""

    samples: Int16
    spoken: tuple[Spoken, ...]

    @property
    def pcm(self) -> bytes:
        return self.samples.astype("<i2").tobytes()

    @property
    def wav(self) -> bytes:
        """The very same samples as a file."""
        buffer = io.BytesIO()
        soundfile.write(buffer, self.samples, RATE_HZ, format="WAV", subtype="PCM_16")
        return buffer.getvalue()


def clear_speech(recordings: Sequence[Recording]) -> list[Speech]:
    """Return those recordings whose beginning and end of speech can be told. Raises `ValueError` for none."""
    speeches = []
    for recording in recordings:
        try:
            bounds = find_speech(recording.samples, RATE_HZ)
        except ValueError:
            continue
        if bounds.doubt_s <= MAX_DOUBT_S:
            speeches.append(Speech(recording, bounds))
    if not speeches:
        raise ValueError("no recording has clear bounds of speech")
    return speeches


def say(
    speeches: Sequence[Speech], seconds: float, seed: int, pauses_s: tuple[float, float] = PAUSES_S
) -> Iterator[tuple[Int16, Spoken | None]]:
    """Pieces of audio, `seconds` long together or a little more, in an order and with pauses that `seed` alone decides.

    A piece is a recording with what is spoken in it, or a pause without; the first and the last are pauses. All recordings
    occur before one comes again.
    """
    random = np.random.default_rng(seed)
    order: list[int] = []
    at = 0
    pause = _noise(random, LEAD_S)
    while at + len(pause) < seconds * RATE_HZ:
        yield pause, None
        at += len(pause)
        order = order or list(random.permutation(len(speeches)))
        speech = speeches[order.pop()]
        samples = speech.recording.samples
        begin_s = at / RATE_HZ
        yield (
            _to_int16(samples + _noise(random, len(samples) / RATE_HZ) / 32768),
            Spoken(
                speech.recording.name,
                speech.recording.text,
                begin_s + speech.bounds.start_s,
                begin_s + speech.bounds.end_s,
            ),
        )
        at += len(samples)
        pause = _noise(random, random.uniform(*pauses_s))
    yield pause, None


def make_stream(speeches: Sequence[Speech], seconds: float, seed: int, pauses_s: tuple[float, float] = PAUSES_S) -> StreamAudio:
    """Return the pieces of `say` as one."""
    pieces = list(say(speeches, seconds, seed, pauses_s))
    return StreamAudio(np.concatenate([samples for samples, _ in pieces]), tuple(each for _, each in pieces if each is not None))


def _noise(random: np.random.Generator, seconds: float) -> Int16:
    level = 32768 * 10 ** (NOISE_DB / 20)
    return np.round(random.normal(0, level, round(seconds * RATE_HZ))).astype(np.int16)


def _to_int16(samples: npt.NDArray[np.floating]) -> Int16:
    scaled: Int16 = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    return scaled
