"""The probabilities of prefixes are sums over all paths of the frames, which a search through all paths finds too."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ctc import NO_TOKEN, collapse
from models.protocols import CtcDraft, Int64
from models.text.ctc_prefix import CtcPrefix, CtcScores

TOKENS = np.array([3, 7, 8], np.int64)


@st.composite
def scores(draw: st.DrawFn) -> CtcScores:
    """The output of up to five frames, each of which writes a blank, or one of three tokens."""
    shares = draw(st.lists(st.lists(st.integers(1, 20), min_size=4, max_size=4), min_size=1, max_size=5))
    probabilities = np.array(shares, np.float64) / np.sum(shares, 1)[:, None]
    return CtcScores(TOKENS, probabilities[:, 1:], probabilities[:, 0])


def all_paths(scores: CtcScores) -> dict[tuple[int, ...], float]:
    """The probability of each path [T] of tokens and blanks."""
    whole = np.concatenate([scores.blank[:, None], scores.probabilities], 1)
    labels = [NO_TOKEN, *scores.tokens.tolist()]
    return {
        tuple(labels[column] for column in columns): float(np.prod(whole[np.arange(len(whole)), columns]))
        for columns in map(list, product(range(4), repeat=len(whole)))
    }


def written(path: tuple[int, ...]) -> tuple[int, ...]:
    return collapse(np.array(path, np.int64))


def prefix_of(scores: CtcScores, columns: list[int]) -> CtcPrefix:
    prefix = CtcPrefix.empty(scores)
    for column in columns:
        prefix = prefix.extend(scores, column)
    return prefix


@given(scores(), st.lists(st.integers(0, 2), max_size=4))
def test_a_prefix_has_the_probability_of_all_paths_that_write_it(scores: CtcScores, columns: list[int]) -> None:
    paths, prefix = all_paths(scores), prefix_of(scores, columns)
    tokens = tuple(TOKENS[columns].tolist())
    whole = sum(probability for path, probability in paths.items() if written(path) == tokens)
    assert np.exp(prefix.log_whole(scores)) == pytest.approx(whole, abs=1e-12)
    for column, longer in enumerate(np.exp(prefix.log_longer(scores))):
        wanted = (*tokens, int(TOKENS[column]))
        begun = sum(probability for path, probability in paths.items() if written(path)[: len(wanted)] == wanted)
        assert longer == pytest.approx(begun, abs=1e-12)


@given(scores(), st.lists(st.integers(0, 2), min_size=1, max_size=4))
def test_the_path_writes_the_tokens_and_is_the_likeliest_that_does(scores: CtcScores, columns: list[int]) -> None:
    tokens = TOKENS[columns]
    paths = {path: each for path, each in all_paths(scores).items() if written(path) == tuple(tokens.tolist())}
    if not paths:
        return
    path, probability = scores.best_path(tokens)
    assert paths[tuple(path.tolist())] == pytest.approx(max(paths.values()), rel=1e-5)
    spoken = path != NO_TOKEN
    assert (probability[~spoken] == 0).all()
    columns_of_path = np.searchsorted(TOKENS, path[spoken])
    np.testing.assert_array_equal(probability[spoken], scores.probabilities[spoken, columns_of_path].astype(np.float32))


def test_no_token_is_a_path_of_blanks() -> None:
    path, probability = CtcScores(TOKENS, np.full((4, 3), 0.2), np.full(4, 0.4)).best_path(np.empty(0, np.int64))
    assert path.tolist() == [NO_TOKEN] * 4
    assert probability.tolist() == [0] * 4


def test_a_long_utterance_does_not_underflow() -> None:
    frames = 3000
    likely = np.zeros((frames, 3))
    likely[np.arange(frames), np.arange(frames) % 3] = 0.3
    scores = CtcScores(TOKENS, likely, np.full(frames, 0.1))
    prefix = prefix_of(scores, [frame % 3 for frame in range(frames)])
    assert prefix.log_whole(scores) == pytest.approx(frames * np.log(0.3))


def test_scores_of_a_draft_are_those_of_its_kept_frames() -> None:
    scores = CtcScores.of_draft(draft_of([[5, 2], [2, 9]], [[0.5, 0.25], [0.75, 0.125]], kept=[1, 2], blank=[0.9, 0.2, 0.5]))
    assert scores.tokens.tolist() == [2, 5, 9]
    assert scores.probabilities.ravel().tolist() == pytest.approx([0, 0, 0, 0.2, 0.4, 0, 0.375, 0, 0.0625])
    assert scores.blank.tolist() == pytest.approx([0.9, 0.2, 0.5])


def draft_of(tokens: list[list[int]], probabilities: list[list[float]], kept: list[int], blank: list[float]) -> CtcDraft:
    best: Int64 = np.full(len(blank), NO_TOKEN, np.int64)
    best[kept] = [row[0] for row in tokens]
    return CtcDraft(
        best,
        np.zeros(len(blank), np.float32),
        np.array(blank, np.float32),
        np.array(kept, np.int64),
        np.array(tokens, np.int64),
        np.array(probabilities, np.float32),
    )
