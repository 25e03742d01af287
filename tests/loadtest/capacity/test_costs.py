"""Stage costs: fitted to measurements, written and read back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.capacity.costs import EncodeCost, find_spread, fit_costs, read_costs, write_costs
from loadtest.capacity.measure import fit_encode
from loadtest.capacity.traced_engine import ENCODE_LENGTHS_S
from tests.loadtest.capacity.fake_costs import ENCODE_S, make_costs


@settings(max_examples=20)
@given(st.lists(st.floats(0.001, 10.0), min_size=3, max_size=3))
def test_the_fit_finds_the_costs_that_made_the_measurement(costs: list[float]) -> None:
    sizes = [[1.0, float(rows), float(rows * positions)] for rows in (1, 2, 4) for positions in (3, 10, 30)]
    assert fit_costs(sizes, [float(np.dot(costs, each)) for each in sizes]) == pytest.approx(costs, rel=1e-3)


def test_no_cost_is_negative() -> None:
    assert fit_costs([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]], [3.0, 2.0, 1.0])[1] == 0.0


def test_a_stage_that_was_not_run_costs_nothing() -> None:
    assert fit_costs([[1.0, 0.0], [2.0, 0.0]], [0.5, 1.0]) == pytest.approx([0.5, 0.0])


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        fit_costs([], [])


def test_the_spread_keeps_the_mean_of_the_measurement() -> None:
    measured = [1.0, 1.2, 0.9, 3.0, 1.1]
    spread = find_spread(measured, [1.0] * len(measured))
    assert np.mean(spread) == pytest.approx(np.mean(measured), rel=1e-3)
    assert spread == tuple(sorted(spread))


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_costs(make_costs(), tmp_path / "costs.json")
    assert read_costs(tmp_path / "costs.json") == make_costs()


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(ValueError, match="does not hold stage costs"):
        read_costs(tmp_path / "costs.json")


@pytest.mark.parametrize(("audio_s", "rows_s"), [(1.0, 1.0), (7.0, 1.0), (17.0, 2.0), (29.0, 3.0)])
def test_an_utterance_costs_what_its_length_was_measured_to_cost(audio_s: float, rows_s: float) -> None:
    costs = make_costs()
    assert costs.encode.predict_s([audio_s]) == pytest.approx(rows_s * ENCODE_S)
    assert costs.encode.predict_s([audio_s, 1.0]) == pytest.approx((rows_s + 1) * ENCODE_S)


@settings(max_examples=20)
@given(st.lists(st.floats(0.01, 1.0), min_size=len(ENCODE_LENGTHS_S), max_size=len(ENCODE_LENGTHS_S)), st.floats(0.001, 0.1))
def test_the_cost_of_each_length_is_found_whatever_it_is(row_s: list[float], call_s: float) -> None:
    """Short audio may cost less than in proportion, or more."""
    truth = EncodeCost(call_s, ENCODE_LENGTHS_S, tuple(row_s))
    batches = [[length_s] * rows for length_s in ENCODE_LENGTHS_S for rows in (1, 2, 4)] + [[1.0, 12.0, 4.0, 30.0]]
    found = fit_encode([(batch, truth.predict_s(batch)) for batch in batches])
    assert [found.call_s, *found.row_s] == pytest.approx([call_s, *row_s], rel=1e-3)


def test_lengths_that_were_not_measured_are_left_out() -> None:
    found = fit_encode([([5.0], 0.1), ([5.0, 5.0], 0.2), ([10.0], 0.15), ([10.0, 10.0], 0.3)])
    assert found.lengths_s == (5.0, 10.0)
    assert found.predict_s([7.5]) == pytest.approx(0.125)
