"""How the next token is chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.backends import BackendError, Float32
from server.request import SamplingOptions
from server.sampling import Sampler

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
LOGITS = arrays.arrays(np.float32, st.integers(1, 40), elements=FINITE)


def draws(logits: Float32, temperature: float, seed: int | None, count: int) -> list[int]:
    sampler = Sampler(SamplingOptions(temperature=temperature, seed=seed))
    return [sampler.choose(logits) for _ in range(count)]


@settings(deadline=None)
@given(LOGITS)
def test_greedy_takes_the_best(logits: Float32) -> None:
    chosen = draws(logits, 0, None, 1)[0]
    assert logits[chosen] == logits.max()


@settings(deadline=None)
@given(LOGITS, st.floats(1e-300, 1e6), st.integers(-(2**63), 2**64))
def test_any_temperature_and_seed_give_a_token(logits: Float32, temperature: float, seed: int) -> None:
    assert all(0 <= token < len(logits) for token in draws(logits, temperature, seed, 3))


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.array([0.0, 0.5, 0.4], np.float32)
    assert set(draws(logits, 1e-9, 1, 50)) == {1}


def test_tokens_come_in_proportion_to_their_probability() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = (np.log(probabilities) * 2).astype(np.float32)
    counts = np.bincount(draws(logits, 2.0, 7, 4000), minlength=4)
    assert counts / 4000 == pytest.approx(probabilities, abs=0.03)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    assert set(draws(logits, 1.0, 3, 200)) == {1, 3}


def test_the_lowest_draw_is_a_possible_token_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lowest:
        def random(self) -> float:
            return 0.0

    monkeypatch.setattr(np.random, "default_rng", lambda _seed: Lowest())
    assert draws(np.array([-np.inf, 0, 0, -np.inf], np.float32), 1.0, 1, 1)[0] in {1, 2}


def test_equal_seeds_repeat_and_other_seeds_differ() -> None:
    logits = np.zeros(1000, np.float32)
    assert draws(logits, 1.0, 5, 20) == draws(logits, 1.0, 5, 20)
    assert draws(logits, 1.0, 5, 20) != draws(logits, 1.0, 6, 20)
    assert draws(logits, 1.0, None, 20) != draws(logits, 1.0, None, 20)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[1, np.nan, 3], [np.inf, 0, 0], [-np.inf, -np.inf, -np.inf]])
def test_logits_that_are_no_numbers_are_an_error(bad: list[float], temperature: float) -> None:
    with pytest.raises(BackendError):
        draws(np.array(bad, np.float32), temperature, 1, 1)
