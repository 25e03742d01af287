"""Speech of which it is known when each word is said.

Synthetic speech has exact times: flite and espeak-ng tell them (their shared libraries are used, `libflite1` and
`libespeak-ng1` in Debian). Recordings with exact text get theirs from PocketSphinx, a conventional forced aligner.
"""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import soxr

from models.features.log_mel import SAMPLE_RATE_HZ
from models.protocols import Float32

FLITE_VOICES = ("slt", "rms", "awb")
ESPEAK_VOICES = ("en-us+m1", "en-us+f2", "en+m3", "en-gb-x-rp+f4", "en-gb-scotland+m4")
BLOCK = SAMPLE_RATE_HZ // 100
SPEECH_DB = 35.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.3, 1.2


@dataclass(frozen=True)
class Spoken:
    """A word and when it is said; None where that is not known."""

    text: str
    start_s: float | None
    end_s: float | None


@dataclass(frozen=True)
class TimedClip:
    """Mono audio at `SAMPLE_RATE_HZ`, and its words. `kind` is where both come from."""

    kind: str
    audio: Float32
    words: list[Spoken]


class FliteWave(ctypes.Structure):
    """`cst_wave`."""

    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


FLITE_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "flite_synth_text": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_void_p]),
    "utt_wave": (ctypes.POINTER(FliteWave), [ctypes.c_void_p]),
    "utt_relation": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "relation_head": (ctypes.c_void_p, [ctypes.c_void_p]),
    "item_next": (ctypes.c_void_p, [ctypes.c_void_p]),
    "item_feat_string": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "ffeature_float": (ctypes.c_float, [ctypes.c_void_p, ctypes.c_char_p]),
    "delete_utterance": (None, [ctypes.c_void_p]),
}
# A token of the text, its words, their syllables, and the sounds of these.
FLITE_START = b"daughter1.R:SylStructure.daughter1.daughter1.R:Segment.p.end"
FLITE_END = b"daughtern.R:SylStructure.daughtern.daughtern.R:Segment.end"


@cache
def flite() -> ctypes.CDLL:
    library = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
    for name in ("usenglish", "cmulex"):
        ctypes.CDLL(f"libflite_{name}.so.1", mode=ctypes.RTLD_GLOBAL)
    library.flite_init()
    for name, (result, arguments) in FLITE_FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def flite_voice(name: str) -> int:
    register = getattr(ctypes.CDLL(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    return int(register(None))


def repeat_noise() -> None:
    """Both synthesisers make noise of C's random numbers: the same for the same text."""
    ctypes.CDLL(None).srand(0)


def speak_with_flite(text: str, voice: str) -> TimedClip:
    library = flite()
    repeat_noise()
    utterance = library.flite_synth_text(text.encode(), flite_voice(voice))
    wave = library.utt_wave(utterance).contents
    audio = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / 32768
    words = []
    token = library.relation_head(library.utt_relation(utterance, b"Token"))
    while token:
        start_s, end_s = (float(library.ffeature_float(token, path)) for path in (FLITE_START, FLITE_END))
        words.append(Spoken(library.item_feat_string(token, b"name").decode(), start_s, end_s))
        token = library.item_next(token)
    rate_hz = wave.sample_rate
    library.delete_utterance(utterance)
    return TimedClip("flite", soxr.resample(audio, rate_hz, SAMPLE_RATE_HZ), words)


class EspeakEvent(ctypes.Structure):
    """`espeak_EVENT`; `name` is the union's eight bytes."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


EspeakCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(EspeakEvent))
ESPEAK_SYNCHRONOUS, ESPEAK_PHONEME_EVENTS, ESPEAK_UTF8 = 2, 1, 1
ESPEAK_LAST_EVENT, ESPEAK_WORD, ESPEAK_PHONEME = 0, 1, 7


class Espeak:
    """espeak-ng's library, which tells each word and each sound with its first sample."""

    def __init__(self) -> None:
        self._samples: list[np.ndarray[Any, Any]] = []
        self._events: list[tuple[int, int, int, int, bytes]] = []
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self.rate_hz = int(self._library.espeak_Initialize(ESPEAK_SYNCHRONOUS, 500, None, ESPEAK_PHONEME_EVENTS))
        # Kept, because the library calls it.
        self._callback = EspeakCallback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        place = 0
        while (event := events[place]).type != ESPEAK_LAST_EVENT:
            self._events.append((event.type, event.text_position, event.length, event.sample, event.name))
            place += 1
        return 0

    def speak(self, text: str, voice: str) -> TimedClip:
        """`text` in ASCII."""
        self._samples, self._events = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice}")
        data = text.encode("ascii")
        repeat_noise()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, ESPEAK_UTF8, None, None)
        audio = np.concatenate(self._samples).astype(np.float32) / 32768
        words: list[Spoken] = []
        last_position = 0
        for kind, position, length, sample, name in self._events:
            at_s = sample / self.rate_hz
            # A pause, like the next word, ends the word before it; some words are told twice.
            if kind == ESPEAK_PHONEME and name.startswith(b"_") and words and words[-1].end_s is None:
                words[-1] = replace(words[-1], end_s=at_s)
            if kind == ESPEAK_WORD and length > 0 and position > last_position:
                if words and words[-1].end_s is None:
                    words[-1] = replace(words[-1], end_s=at_s)
                words.append(Spoken(text[position - 1 : position - 1 + length], at_s, None))
                last_position = position
        return TimedClip("espeak-ng", soxr.resample(audio, self.rate_hz, SAMPLE_RATE_HZ), words)


class ForcedAligner:
    """PocketSphinx's alignment of a recording with its exact text, to 10 ms."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder: Any = Decoder(samprate=SAMPLE_RATE_HZ, bestpath=False, loglevel="FATAL")

    def align(self, kind: str, audio: Float32, text: str) -> TimedClip | None:
        """None where its dictionary lacks a word or it finds no way through the audio."""
        words = [word.strip("'") for word in re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " ")).split()]
        if not all(word and self._decoder.lookup_word(word) for word in words):
            return None
        self._decoder.set_align_text(" ".join(words))
        self._decode(audio)
        if self._decoder.hyp() is None:
            return None
        # The first pass finds the words, the second one their sounds.
        self._decoder.set_alignment()
        self._decode(audio)
        found = [
            Spoken(re.sub(r"\(\d+\)$", "", word.name), word.start / 100, (word.start + word.duration) / 100)
            for word in self._decoder.get_alignment().words()
            if re.match(r"[a-z]", word.name)
        ]
        return TimedClip(kind, audio, found)

    def _decode(self, audio: Float32) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw((np.clip(audio, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()


def speech_bounds(audio: Float32) -> tuple[int, int] | None:
    """Return the first sample of the speech in a recording and the one behind its last; None where noise hides them."""
    blocks = audio[: len(audio) // BLOCK * BLOCK].reshape(-1, BLOCK)
    level_db = 10 * np.log10((blocks.astype(np.float64) ** 2).mean(1) + 1e-10)
    loud_db, low_db = np.percentile(level_db, [95, 5])
    if low_db > loud_db - SPEECH_DB - 5:
        return None
    loud = np.convolve(level_db > loud_db - SPEECH_DB, np.ones(3), "valid") == 3
    places = np.flatnonzero(loud)
    return int(places[0]) * BLOCK, int(places[-1] + 3) * BLOCK


def join(recordings: Sequence[tuple[Float32, str]], longest_s: float, seed: int) -> list[TimedClip]:
    """Return the speech in these recordings, one behind the other with pauses of faint noise, in clips of up to `longest_s`.

    Known are the beginning of the first and the end of the last word of each recording.
    """
    rng = np.random.default_rng(seed)
    clips: list[TimedClip] = []
    audio, words = pause(rng), list[Spoken]()
    for recording, text in recordings:
        bounds = speech_bounds(recording)
        if bounds is None:
            continue
        speech = recording[bounds[0] : bounds[1]]
        if words and (len(audio) + len(speech)) / SAMPLE_RATE_HZ > longest_s - LONGEST_PAUSE_S:
            clips.append(TimedClip("joined", audio, words))
            audio, words = pause(rng), []
        said = [Spoken(word, None, None) for word in text.split()]
        said[0] = replace(said[0], start_s=len(audio) / SAMPLE_RATE_HZ)
        said[-1] = replace(said[-1], end_s=(len(audio) + len(speech)) / SAMPLE_RATE_HZ)
        words += said
        level = np.float32(0.1 / np.sqrt((speech**2).mean()))
        audio = np.concatenate([audio, speech * level, pause(rng)])
    return [*clips, TimedClip("joined", audio, words)]


def pause(rng: np.random.Generator) -> Float32:
    length_s = rng.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S)
    return rng.normal(0, 1e-4, round(length_s * SAMPLE_RATE_HZ)).astype(np.float32)
