"""Runs of a CTC path."""

from itertools import groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.ctc import Run, collapse, find_runs


def test_collapse_drops_blanks_and_joins_runs() -> None:
    assert collapse(np.array([-1, 5, 5, -1, 5, 7, 7, 9, -1])) == (5, 5, 7, 9)
    assert collapse(np.array([], np.int64)) == ()


@given(st.lists(st.integers(-1, 2)))
def test_runs_are_the_groups_of_equal_neighbours_without_blanks(path: list[int]) -> None:
    expected = []
    for token, frames in groupby(range(len(path)), path.__getitem__):
        numbers = list(frames)
        if token >= 0:
            expected.append(Run(token, numbers[0], numbers[-1]))
    assert find_runs(path) == expected
    assert find_runs(np.array(path, np.int64)) == expected
