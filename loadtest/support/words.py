"""Words of texts, and word error rates."""

import re
from collections.abc import Callable, Sequence

import jiwer

MakeWords = Callable[[str], str]


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def plain_words(text: str) -> str:
    """Return the words of a text, joined by spaces."""
    return " ".join(words_of(text))


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str], normalise: MakeWords = plain_words) -> float:
    """Return word edits over reference words, all texts together. Pairs whose reference has no words are left out.

    Raises `ValueError` if no reference has words.
    """
    pairs = [(normalise(reference), normalise(hypothesis)) for reference, hypothesis in zip(references, hypotheses, strict=True)]
    kept = [pair for pair in pairs if pair[0]]
    if not kept:
        raise ValueError("no reference has words")
    return float(jiwer.wer([reference for reference, _ in kept], [hypothesis for _, hypothesis in kept]))
