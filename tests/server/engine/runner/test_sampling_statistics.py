"""Sampled tokens come as often as the options say, with drafts and without. Seeds are fixed, so the outcome is too."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models.protocols import Float32
from server.engine.runner.sampling import Sampler
from server.engine.types.options import SamplingOptions

DRAWS = 10_000
DRAFTED_DRAWS = 2_000
VOCABULARY = 30
LOGITS = np.random.default_rng(0).normal(0, 2, VOCABULARY).astype(np.float32)
MODEL: Float32 = np.random.default_rng(1).normal(0, 1, (7, 6)).astype(np.float32)
ANSWER = [3, 3, int(LOGITS.argmax()), 7]

Probabilities = npt.NDArray[np.float64]

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "cold": {"temperature": 0.4},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "top_k and top_p": {"top_k": 8, "top_p": 0.9},
    "repetition": {"repetition_penalty": 1.6},
    "encouraged repetition": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.5},
    "all": {
        "temperature": 1.3,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
    },
}


def exact_probabilities(options: SamplingOptions) -> Probabilities:
    """The distribution that the options describe, token by token as it is defined."""
    scores = LOGITS.astype(np.float64)
    for token in set(ANSWER):
        scores[token] *= options.repetition_penalty if scores[token] <= 0 else 1 / options.repetition_penalty
        scores[token] -= options.presence_penalty
    ranked = sorted(range(VOCABULARY), key=lambda token: -scores[token])[: options.top_k or VOCABULARY]
    weights = {token: np.exp(scores[token] / options.temperature) for token in ranked}
    total, mass = sum(weights.values()), 0.0
    probabilities = np.zeros(VOCABULARY)
    for token in ranked:
        if mass < options.top_p:
            probabilities[token] = weights[token]
        mass += weights[token] / total
    normalised: Probabilities = probabilities / probabilities.sum()
    return normalised


def assert_drawn_from(probabilities: Probabilities, counts: npt.NDArray[np.int64]) -> None:
    """Pearson's chi-square at five standard deviations; outcomes too rare for it are taken together."""
    assert not counts[probabilities == 0].any()
    expected = probabilities * counts.sum()
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    observed = np.append(counts[~rare], counts[rare].sum())
    possible = expected > 0
    degrees = int(possible.sum()) - 1
    statistic = float((((observed - expected) ** 2)[possible] / expected[possible]).sum())
    assert statistic < degrees + 5 * np.sqrt(2 * degrees), (statistic, degrees)


@pytest.mark.parametrize("feature", FEATURES)
def test_tokens_come_as_often_as_the_options_say(feature: str) -> None:
    fields = {"temperature": 1.0, **FEATURES[feature]}
    tokens = [Sampler(SamplingOptions(seed=seed, **fields)).choose(LOGITS, ANSWER) for seed in range(DRAWS)]
    assert_drawn_from(exact_probabilities(SamplingOptions(**fields)), np.bincount(tokens, minlength=VOCABULARY))


def test_the_check_would_notice_a_small_bias() -> None:
    probabilities = exact_probabilities(SamplingOptions(temperature=1.0))
    biased = np.random.default_rng(0).multinomial(DRAWS, 0.95 * probabilities + 0.05 / VOCABULARY)
    with pytest.raises(AssertionError):
        assert_drawn_from(probabilities, biased)


def test_positions_of_one_answer_are_independent() -> None:
    """Pairs of neighbours in one long answer."""
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=1))
    tokens = np.array([sampler.choose(LOGITS[:6], [0] * position) for position in range(DRAWS)])
    single = exact_of(LOGITS[:6])
    pairs = np.bincount(tokens[:-1] * 6 + tokens[1:], minlength=36)
    assert_drawn_from(np.outer(single, single).ravel(), pairs)


def exact_of(logits: Float32) -> Probabilities:
    weights = np.exp(logits.astype(np.float64))
    normalised: Probabilities = weights / weights.sum()
    return normalised


def logits_after(tokens: list[int]) -> Float32:
    """A model of six tokens that looks at the last one."""
    logits: Float32 = MODEL[tokens[-1] + 1 if tokens else 0]
    return logits


def drafted_answer(seed: int, draft: list[int]) -> list[int]:
    """Accept the draft as far as `choose` names it, then put the chosen token in place of the rejected one."""
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
    verified = [logits_after(draft[:count]) for count in range(len(draft))]
    answer: list[int] = []
    for logits, proposed in zip(verified, draft, strict=True):
        answer.append(sampler.choose(logits, answer))
        if answer[-1] != proposed:
            break
    while len(answer) < len(draft):
        answer.append(sampler.choose(logits_after(answer), answer))
    return answer


def test_a_draft_changes_neither_an_answer_nor_the_distribution_of_answers() -> None:
    plain = [drafted_answer(seed, [-1, -1]) for seed in range(DRAWS)]
    for draft in ([0, 0], [int(logits_after([]).argmax()), 3]):
        assert [drafted_answer(seed, draft) for seed in range(DRAFTED_DRAWS)] == plain[:DRAFTED_DRAWS]
    joint = np.concatenate([exact_of(logits_after([]))[token] * exact_of(logits_after([token])) for token in range(6)])
    assert_drawn_from(joint, np.bincount([first * 6 + second for first, second in plain], minlength=36))
