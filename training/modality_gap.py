"""The modality gap: how near a model's answer about speech is to the same LLM's answer about the true text."""

from collections import Counter
from collections.abc import Sequence

from training.word_errors import normaliser

# The first was trained on, the second was trained on with other words, the third is of a kind that training never saw.
GAP_INSTRUCTIONS = (
    "What is the speaker talking about?",
    "Summarise what was said in one sentence.",
    "Who or what is mentioned? Name one thing.",
)


def token_f1(reference: str, answer: str) -> float:
    """Harmonic mean of precision and recall over normalised words, as SQuAD counts it; 1 for two empty answers."""
    expected, given = Counter(normaliser()(reference).split()), Counter(normaliser()(answer).split())
    shared = sum((expected & given).values())
    if not expected and not given:
        return 1.0
    return 2 * shared / (sum(expected.values()) + sum(given.values()))


def agreement(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Share of equal answers, and mean token F1, over (answer from text, answer from speech)."""
    return {
        "exact": sum(text == speech for text, speech in pairs) / len(pairs),
        "token_f1": sum(token_f1(text, speech) for text, speech in pairs) / len(pairs),
    }
