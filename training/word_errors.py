"""Word error rate with Whisper's English normaliser, as papers report it."""

from collections.abc import Sequence
from functools import cache

import jiwer
from whisper_normalizer.english import EnglishTextNormalizer


@cache
def normaliser() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Errors over reference words, all utterances together."""
    cleaned = [
        (normaliser()(reference), normaliser()(hypothesis)) for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    kept = [(reference, hypothesis) for reference, hypothesis in cleaned if reference]
    return float(jiwer.wer([r for r, _ in kept], [h for _, h in kept]))
