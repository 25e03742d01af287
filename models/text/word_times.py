"""From the places of an answer's tokens to the beginning and end of each of its words.

CTC marks one or two frames within a word, not its beginning and end. The place of that frame in the word depends on little but
the number of letters, so the word's ends can be estimated from it. A pause between two words is found in the audio itself.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from models.protocols import CtcDraft, Float32, Int64
from models.text.alignment import SILENT, Float64, Sounds, align
from models.text.tokeniser import Tokeniser


@dataclass(frozen=True)
class Reach:
    """How far a word reaches beyond the middle of its first or last token: a fixed time, and more for each of its letters."""

    fixed_s: float
    per_letter_s: float

    def seconds(self, letters: Float64) -> Float64:
        return self.fixed_s + self.per_letter_s * letters


# Fitted by `python -m training.word_times` to speech that its figures do not come from.
BEFORE = Reach(0.0353, 0.0224)
AFTER = Reach(0.0167, 0.0385)
# Words whose estimated ends are not farther apart follow each other without a pause.
TOUCHING_S = 0.2
# Of the two estimates of where they meet, that from the second word is the better one.
SECOND_WORD_WEIGHT = 0.7
BLOCK_S = 0.01
# Quiet is what lies so far below the loudest twentieth of the blocks, or so little above the quietest, if that is low enough.
QUIET_DB = 30.0
ABOVE_NOISE_DB = 6.0
LEAST_QUIET_DB = 12.0
SILENCE = 1e-10
# A shorter silence is that of a consonant: the mouth is closed within and before p, t and k.
SHORTEST_PAUSE_S = 0.1


@dataclass(frozen=True)
class TimedWord:
    """A word as the text has it, with its punctuation."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class PlacedWords:
    """Some words, each with the middle of its first and of its last token, and the letters in these two [words]."""

    texts: list[str]
    first_s: Float64
    last_s: Float64
    first_letters: Float64
    last_letters: Float64


class WordTimer:
    """Finds the times of the words of an answer."""

    def __init__(self, tokeniser: Tokeniser, vocabulary_size: int, sample_rate_hz: int, frame_s: float) -> None:
        """`frame_s` is how much audio a frame of the adapter stands for."""
        self._tokeniser = tokeniser
        self._sounds = Sounds(tokeniser, vocabulary_size)
        self._sample_rate_hz = sample_rate_hz
        self._frame_s = frame_s

    def times(self, draft: CtcDraft, audio: Float32, tokens: Sequence[int], text: str) -> tuple[TimedWord, ...]:
        """Return the words of `text` in order and within the audio; joined by spaces they are the text (whitespace aside).

        `draft` is that of `audio` [samples]; `tokens` are those of the answer, whose text, stripped, begins
        with `text`. A text without letters or digits has no words. A text that was not said has times too, which mean
        nothing.
        """
        audio_s = len(audio) / self._sample_rate_hz
        placed = self.place_words(draft, tokens, text, audio_s)
        if not placed.texts:
            return ()
        start_s, end_s = bounds(placed, silences(audio, self._sample_rate_hz), audio_s)
        return tuple(map(TimedWord, placed.texts, start_s.tolist(), end_s.tolist()))

    def place_words(self, draft: CtcDraft, tokens: Sequence[int], text: str, audio_s: float) -> PlacedWords:
        """Return the places of the words of `text` in the audio; the arguments are those of `times`."""
        words, starts, spoken = self._words(tokens, text)
        if not words:
            return PlacedWords([], *(np.empty(0) for _ in range(4)))
        lasts = np.append(starts[1:], len(spoken)) - 1
        # The last frame may stand for audio that is not there.
        heard_s = np.minimum(align(draft, self._sounds, spoken) * self._frame_s, audio_s)
        letters = self._sounds.letters[spoken]
        return PlacedWords(words, heard_s[starts], heard_s[lasts], letters[starts], letters[lasts])

    def _words(self, tokens: Sequence[int], text: str) -> tuple[list[str], Int64, Int64]:
        """Return the text's words, the index of each word's first token among the tokens with a sound, and these tokens.

        A piece without a sound, such as a lone dash, belongs to the word before it.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pieces = [decoder.decode(self._tokeniser.token_bytes(token)) for token in tokens]
        whole = "".join(pieces)
        places = np.cumsum([0, *map(len, pieces)])[:-1] + [len(piece) - len(piece.lstrip()) for piece in pieces]
        places -= len(whole) - len(whole.lstrip())
        chunks = list(re.finditer(r"\S+", text))
        # A token before the first chunk is in none, which does not speak.
        speaks = np.array([*(any(map(str.isalnum, chunk.group())) for chunk in chunks), False])
        chunk_of = np.searchsorted([chunk.start() for chunk in chunks], places, "right") - 1
        ids = np.array(tokens, np.int64)
        sounds = (self._sounds.of[ids] != SILENT) & (places < len(text)) & speaks[chunk_of]
        heard, starts = np.unique(chunk_of[sounds], return_index=True)
        cuts = [0, *heard[1:].tolist(), len(chunks)]
        words = [" ".join(chunk.group() for chunk in chunks[start:end]) for start, end in pairwise(cuts)] if len(heard) else []
        return words, starts, ids[sounds]


def silences(audio: Float32, sample_rate_hz: int) -> tuple[Float64, Float64]:
    """Return the beginnings and the ends of the pauses in the audio, in seconds [pauses].

    Audio is quiet if it is far below the loudest parts, or, in noise, little above the quietest.
    """
    size = round(BLOCK_S * sample_rate_hz)
    blocks = audio[: len(audio) // size * size].reshape(-1, size)
    if not len(blocks):
        return np.empty(0), np.empty(0)
    level_db = 10 * np.log10(np.einsum("bs,bs->b", blocks, blocks) / size + SILENCE)
    loud_db, low_db = np.percentile(level_db, [95, 5])
    quiet = level_db < max(loud_db - QUIET_DB, min(low_db + ABOVE_NOISE_DB, loud_db - LEAST_QUIET_DB))
    edges = np.diff(quiet.astype(np.int8), prepend=0, append=0)
    start_s, end_s = (np.flatnonzero(at).astype(np.float64) * BLOCK_S for at in (edges > 0, edges < 0))
    pauses = end_s - start_s > SHORTEST_PAUSE_S - BLOCK_S / 2
    return start_s[pauses], end_s[pauses]


def bounds(placed: PlacedWords, silences: tuple[Float64, Float64], audio_s: float) -> tuple[Float64, Float64]:
    """Return the beginning and the end of each word [words], never decreasing from one to the next."""
    start_s = placed.first_s - BEFORE.seconds(placed.first_letters)
    end_s = placed.last_s + AFTER.seconds(placed.last_letters)
    # Gap 0 is before the first word, the last one behind the last word. A gap begins where a word ends.
    low_s, high_s = np.append(0.0, placed.last_s), np.append(placed.first_s, audio_s)
    gap_start_s, gap_end_s = np.append(0.0, end_s), np.append(start_s, audio_s)
    touching = gap_end_s - gap_start_s < TOUCHING_S
    touching[[0, -1]] = False
    meeting_s = SECOND_WORD_WEIGHT * gap_end_s + (1 - SECOND_WORD_WEIGHT) * gap_start_s
    gap_start_s[touching] = gap_end_s[touching] = meeting_s[touching]
    if len(silences[0]):
        from_s, to_s = np.maximum(silences[0], low_s[:, None]), np.minimum(silences[1], high_s[:, None])
        longest = np.arange(len(low_s)), (to_s - from_s).argmax(1)
        pauses = (to_s - from_s)[longest] >= SHORTEST_PAUSE_S
        gap_start_s[pauses], gap_end_s[pauses] = from_s[longest][pauses], to_s[longest][pauses]
    return np.clip(gap_end_s, low_s, high_s)[:-1], np.clip(gap_start_s, low_s, high_s)[1:]
