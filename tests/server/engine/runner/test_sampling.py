"""How the next token is chosen."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.protocols import BackendError, Float32
from server.engine.runner import sampling
from server.engine.runner.sampling import Sampler, largest
from server.engine.types.options import SamplingOptions
from tests.support.fakes.fake_models import tiny_tokeniser

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
LOGITS = arrays.arrays(np.float32, st.integers(1, 40), elements=FINITE | st.just(-np.inf)).filter(
    lambda logits: bool(np.isfinite(logits).any())
)
FEW_VALUES = arrays.arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([-2.0, 0.0, 1.0, 1.5]))
OPTIONS = st.builds(
    SamplingOptions,
    repetition_penalty=st.floats(0.5, 2),
    presence_penalty=st.floats(-2, 2),
    temperature=st.just(0.0) | st.floats(1e-300, 1e6),
    top_k=st.integers(0, 50),
    top_p=st.floats(1e-9, 1),
    seed=st.none() | st.integers(-(2**63), 2**64),
)


def draws(logits: Float32, count: int, **options: Any) -> list[int]:
    """Tokens number 0 to `count` - 1 of an answer, all from the same logits."""
    sampler = Sampler(SamplingOptions(**options))
    return [sampler.choose(logits, [0] * position) for position in range(count)]


@settings(deadline=None)
@given(LOGITS)
def test_greedy_takes_the_best(logits: Float32) -> None:
    assert draws(logits, 1, temperature=0.0) == [int(logits.argmax())]


@settings(deadline=None, max_examples=100)
@given(LOGITS, OPTIONS, st.data())
def test_any_options_give_a_possible_token(logits: Float32, options: SamplingOptions, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=5))
    assert np.isfinite(logits[Sampler(options).choose(logits, tokens)])


@settings(deadline=None)
@given(FEW_VALUES, st.integers(1, 250), st.integers(0, 2**64 - 1))
def test_top_k_draws_among_the_k_best(logits: Float32, top_k: int, seed: int) -> None:
    allowed = np.argsort(-logits, kind="stable")[:top_k]
    assert set(draws(logits, 5, temperature=1.0, top_k=top_k, seed=seed)) <= set(allowed.tolist())


@settings(deadline=None)
@given(FEW_VALUES, st.floats(1e-9, 1), st.integers(0, 2**64 - 1))
def test_top_p_draws_within_the_nucleus(logits: Float32, top_p: float, seed: int) -> None:
    probabilities = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    for token in draws(logits, 5, temperature=1.0, top_p=top_p, seed=seed):
        assert probabilities[probabilities > probabilities[token]].sum() < top_p + 1e-9


def test_a_wide_nucleus_is_found() -> None:
    logits = np.linspace(0, 0.1, 10_000).astype(np.float32)
    ids, weights = sampling.nucleus(*sampling.likeliest(logits, 0, 1.0), 0.9)
    shares = np.sort(np.exp(logits.astype(np.float64)))[::-1].cumsum()
    assert len(ids) == int((shares / shares[-1] < 0.9).sum()) + 1
    assert set(ids.tolist()) == set(range(10_000 - len(ids), 10_000))
    assert len(weights) == len(ids)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-9}])
def test_the_narrowest_sampling_is_greedy(narrow: dict[str, Any]) -> None:
    logits = np.array([0.0, 0.5, 0.5, 0.4], np.float32)
    expected = {1, 2} if "temperature" in narrow else {1}
    assert set(draws(logits, 50, **{"temperature": 1.0, "seed": 1, **narrow})) == expected


def test_impossible_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    for top_k in (0, 3, 4):
        assert set(draws(logits, 200, temperature=1.0, seed=3, top_k=top_k)) == {1, 3}


@pytest.mark.parametrize("draw", [2.0**-53, 1.0])
def test_the_outermost_draws_are_possible_tokens_too(monkeypatch: pytest.MonkeyPatch, draw: float) -> None:
    monkeypatch.setattr(sampling, "uniform", lambda _seed, _position: draw)
    expected = 1 if draw < 1 else 2
    assert draws(np.array([-np.inf, 0, 0, -np.inf], np.float32), 1, temperature=1.0) == [expected]


def test_equal_seeds_repeat_and_other_seeds_differ() -> None:
    logits = np.zeros(1000, np.float32)
    assert draws(logits, 20, temperature=1.0, seed=5) == draws(logits, 20, temperature=1.0, seed=5)
    assert draws(logits, 20, temperature=1.0, seed=5) != draws(logits, 20, temperature=1.0, seed=6)
    assert draws(logits, 20, temperature=1.0) != draws(logits, 20, temperature=1.0)


@settings(deadline=None)
@given(st.none() | st.integers(0, 2**63), st.permutations(range(12)))
def test_a_position_gets_its_token_in_whatever_order_it_is_asked(seed: int | None, order: list[int]) -> None:
    logits = np.random.default_rng(1).normal(size=500).astype(np.float32)
    sampler = Sampler(SamplingOptions(temperature=1.0, top_p=0.9, repetition_penalty=1.2, seed=seed))
    in_order = [sampler.choose(logits, list(range(position))) for position in range(12)]
    assert {position: sampler.choose(logits, list(range(position))) for position in order} == dict(enumerate(in_order))


def test_the_repetition_penalty_divides_what_is_positive_and_multiplies_the_rest() -> None:
    """CTRL, section 4.1, as transformers has it for negative logits."""
    logits = np.array([2.0, 1.5, -1.0, -1.5], np.float32)
    assert Sampler(SamplingOptions(repetition_penalty=1.3)).choose(logits, [0, 0]) == 0
    assert Sampler(SamplingOptions(repetition_penalty=1.4)).choose(logits, [0, 0]) == 1
    assert Sampler(SamplingOptions(repetition_penalty=1.4)).choose(logits[2:], [0]) == 0
    assert Sampler(SamplingOptions(repetition_penalty=1.6)).choose(logits[2:], [0]) == 1


def test_the_presence_penalty_is_the_same_however_often_a_token_came() -> None:
    logits = np.array([2.0, 1.0], np.float32)
    assert Sampler(SamplingOptions(presence_penalty=0.9)).choose(logits, [0] * 9) == 0
    assert Sampler(SamplingOptions(presence_penalty=1.1)).choose(logits, [0]) == 1
    assert Sampler(SamplingOptions(presence_penalty=-1.1)).choose(logits, [1]) == 1


def test_penalties_leave_the_logits_as_they_are() -> None:
    logits = np.array([2.0, 1.0], np.float32)
    Sampler(SamplingOptions(presence_penalty=2, repetition_penalty=2)).choose(logits, [0])
    assert logits.tolist() == [2, 1]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 1}, {"presence_penalty": 1.0}])
@pytest.mark.parametrize("bad", [[1, np.nan, 3], [np.inf, 0, 0], [-np.inf, -np.inf, -np.inf], [5, 0, np.nan]])
def test_logits_that_are_no_numbers_are_an_error(bad: list[float], options: dict[str, Any]) -> None:
    with pytest.raises(BackendError):
        Sampler(SamplingOptions(seed=1, **options)).choose(np.array(bad, np.float32), [0])


@settings(deadline=None)
@given(arrays.arrays(np.float32, 330, elements=st.floats(-50, 50, width=32)), st.integers(0, 329), st.integers(0, 20))
def test_logprobs_are_those_of_the_softmax(logits: Float32, token: int, count: int) -> None:
    sampler, tokeniser = Sampler(SamplingOptions(temperature=2.0, logprobs=count)), tiny_tokeniser()
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    measured = sampler.logprob(logits, token, tokeniser)
    assert measured.bytes == tokeniser.token_bytes(token)
    assert measured.logprob == pytest.approx(exact[token], abs=1e-5)
    assert sampler.probability(logits, token) == pytest.approx(np.exp(exact[token]), rel=1e-5)
    best = np.argsort(-logits, kind="stable")[:count]
    assert [bytes for bytes, _ in measured.top] == [tokeniser.token_bytes(int(id)) for id in best]
    assert [logprob for _, logprob in measured.top] == pytest.approx(exact[best].tolist(), abs=1e-5)


def test_impossible_tokens_are_left_out_of_the_best() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    measured = Sampler(SamplingOptions(logprobs=4)).logprob(logits, 0, tiny_tokeniser())
    assert [logprob for _, logprob in measured.top] == pytest.approx([np.log(0.5)] * 2)
    assert (measured.logprob, Sampler(SamplingOptions()).probability(logits, 0)) == (-np.inf, 0)


@settings(deadline=None)
@given(FEW_VALUES, st.integers(0, 250))
def test_the_largest_are_the_first_of_a_stable_order(values: Float32, count: int) -> None:
    assert largest(values, count).tolist() == sorted(np.argsort(-values, kind="stable")[:count].tolist())
