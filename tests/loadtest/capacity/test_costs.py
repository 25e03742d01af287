"""Stage costs: fitted to measurements, written and read back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.capacity.costs import find_spread, fit_costs, read_costs, write_costs
from tests.loadtest.capacity.fake_costs import make_costs


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


@pytest.mark.parametrize(("audio_s", "padded_s"), [(1.0, 10.0), (8.5, 12.0), (29.0, 30.0)])
def test_audio_is_padded_as_the_encoder_hears_it(audio_s: float, padded_s: float) -> None:
    assert make_costs().pad_s(audio_s) == padded_s
