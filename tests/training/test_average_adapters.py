"""The average of adapters has the mean of their weights, but for what goes together with the first one's alone."""

from pathlib import Path

import numpy as np
import pytest

from models.projectors.subsample import TrainedAdapter, read_adapter
from training.average_adapters import average, main

CONFIG = {"reduction": 4, "blank_threshold": 0.4}


def adapter(value: float, columns: int = 3) -> TrainedAdapter:
    weights = {name: np.full((2, columns), value, np.float32) for name in ("input.weight", "boundary_before", "residual.weight")}
    return TrainedAdapter(weights, CONFIG)


def test_weights_are_averaged_and_what_belongs_to_the_first_is_kept() -> None:
    averaged = average([adapter(1.0), adapter(2.0), adapter(6.0)])
    assert {name: set(weight.ravel().tolist()) for name, weight in averaged.weights.items()} == {
        "input.weight": {3.0},
        "boundary_before": {1.0},
        "residual.weight": {1.0},
    }
    assert averaged.config == CONFIG


def test_adapters_of_different_shapes_have_no_average() -> None:
    with pytest.raises(ValueError, match="different weights"):
        average([adapter(1.0), adapter(1.0, columns=4)])


def test_what_is_saved_is_read_again_with_its_shapes(tmp_path: Path) -> None:
    saved = TrainedAdapter({"scale": np.array(0.5, np.float32), "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}, CONFIG)
    saved.save(tmp_path / "adapter.safetensors")
    read = read_adapter(tmp_path / "adapter.safetensors")
    assert read.config == CONFIG
    for name, weight in saved.weights.items():
        assert read.weights[name].shape == weight.shape
        np.testing.assert_array_equal(read.weights[name], weight)


def test_the_command_writes_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (1, 3):
        adapter(value).save(tmp_path / f"{value}.safetensors")
    paths = [str(tmp_path / f"{value}.safetensors") for value in (1, 3)]
    monkeypatch.setattr("sys.argv", ["average_adapters", "--adapters", *paths, "--out", str(tmp_path / "out.safetensors")])
    main()
    written = read_adapter(tmp_path / "out.safetensors")
    assert written.config == CONFIG
    assert (written.weights["input.weight"] == 2).all()
