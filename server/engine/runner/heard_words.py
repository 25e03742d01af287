"""The words of a CTC draft with their times, and how they go on behind words that an earlier hypothesis heard. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from models.ctc import Run, find_runs
from models.protocols import Float32, Int64
from models.text.tokeniser import Tokeniser
from server.engine.types.events import Word

KNOWN_PROBABILITY = 0.95
"""Of a word that an earlier hypothesis about the same audio had."""


@dataclass(frozen=True)
class HeardWord(Word):
    """A word of a draft, with the probability that the draft gives it."""

    probability: float = 1.0


def read_words(
    best_token: Int64 | Sequence[int], frame_s: float, tokeniser: Tokeniser, probability: Float32 | Sequence[float] = ()
) -> list[HeardWord]:
    """Return the words of a CTC path [frames], each from its first token's first frame to its last one's last.

    `probability` [frames] is that of the best token; the probability of a word is the product of its tokens'.
    """
    words: list[list[Run]] = []
    for run in find_runs(best_token):
        if not words or tokeniser.begins_word(run.token):
            words.append([])
        words[-1].append(run)
    heard = []
    for runs in words:
        if text := tokeniser.decode([run.token for run in runs]).strip():
            likely = [float(max(probability[run.first : run.last + 1], default=1.0)) for run in runs]
            heard.append(HeardWord(text, runs[0].first * frame_s, (runs[-1].last + 1) * frame_s, math.prod(likely)))
    return heard


def continue_words(known: Sequence[Word], heard: Sequence[HeardWord]) -> list[HeardWord]:
    """Return known words, each almost certain, and behind the last of them the heard ones."""
    certain = [HeardWord(word.text, word.start_s, word.end_s, KNOWN_PROBABILITY) for word in known]
    return [*certain, *(word for word in heard if not known or middle_s(word) > known[-1].end_s)]


def middle_s(word: Word) -> float:
    """Return the middle of a word's time, which moves less between hypotheses than its ends do."""
    return (word.start_s + word.end_s) / 2


def shift_words(words: Sequence[Word], seconds: float) -> tuple[Word, ...]:
    """Return words so much later."""
    return tuple(Word(word.text, word.start_s + seconds, word.end_s + seconds) for word in words)
