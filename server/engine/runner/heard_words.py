"""The words of a CTC draft with their times, and how they go on behind words that an earlier hypothesis heard. Pure."""

from collections.abc import Sequence

from models.ctc import find_runs
from models.protocols import Int64
from models.text.tokeniser import Tokeniser
from server.engine.types.events import Word


def read_words(best_token: Int64 | Sequence[int], frame_s: float, tokeniser: Tokeniser) -> list[Word]:
    """Return the words of a CTC path [frames], each from its first token's first frame to its last one's last."""
    words: list[list[tuple[int, float, float]]] = []
    for run in find_runs(best_token):
        token = run.token, run.first * frame_s, (run.last + 1) * frame_s
        if not words or tokeniser.begins_word(run.token):
            words.append([])
        words[-1].append(token)
    read = (Word(tokeniser.decode([token for token, *_ in word]).strip(), word[0][1], word[-1][2]) for word in words)
    return [word for word in read if word.text]


def continue_words(known: Sequence[Word], heard: Sequence[Word]) -> list[Word]:
    """Return known words and, behind the last of them, the heard ones."""
    return [*known, *(word for word in heard if not known or middle_s(word) > known[-1].end_s)]


def middle_s(word: Word) -> float:
    """Return the middle of a word's time, which moves less between hypotheses than its ends do."""
    return (word.start_s + word.end_s) / 2


def shift_words(words: Sequence[Word], seconds: float) -> tuple[Word, ...]:
    """Return words so much later."""
    return tuple(Word(word.text, word.start_s + seconds, word.end_s + seconds) for word in words)
