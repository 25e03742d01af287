"""The silence behind an utterance: groups cover a window once, and attention reads them as often as they have members."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.graph.silent_rest import SilentRest
from models.graph.writer import MASKED, GraphBuilder


@given(window=st.integers(1, 3000))
def test_groups_cover_a_window_in_order_and_grow_with_their_distance(window: int) -> None:
    groups = SilentRest(window).groups()
    covered = [place for group in groups for place in group]
    assert covered[:window] == list(range(window))
    sizes = [len(group) for group in groups]
    assert sizes == sorted(sizes)
    assert all(len(group) <= max(1, group.start / SilentRest.FINENESS) for group in groups)
    assert max(sizes) <= SilentRest.WIDEST


def test_a_window_of_30_s_has_few_groups() -> None:
    assert len(SilentRest(1500).groups()) == 98


@pytest.mark.parametrize(("own", "padding"), [(1, 0), (700, 3), (1450, 0), (1500, 20)])
def test_the_bias_of_memory_is_that_of_the_encoder(tmp_path: Path, own: int, padding: int) -> None:
    rest = SilentRest(1500)
    count = len(rest.groups())
    encoder = GraphBuilder("encoder")
    positions, bias = rest.write(encoder, encoder.input("length", np.int64, [1]))
    encoder.output(positions, "positions", np.int64, [count])
    encoder.output(bias, "bias", np.float32, [count])
    encoder.save(tmp_path / "encoder.onnx")
    places, silent = onnxruntime.InferenceSession(tmp_path / "encoder.onnx").run(None, {"length": np.array([own])})
    inside = rest.groups_behind(own)
    assert places[: len(inside)].tolist() == [own + group[len(group) // 2] for group in inside]
    assert places.max(initial=0) < rest.window
    expected = [np.log(len(group)) for group in inside] + [MASKED] * (count - len(inside))
    np.testing.assert_allclose(silent, expected, rtol=1e-6)

    decoder = GraphBuilder("decoder")
    length, states = decoder.input("length", np.int64, [1, 1, 1, 1]), decoder.input("states", np.int64, ["states"])
    decoder.output(rest.write_bias(decoder, length, states), "bias", np.float32, [1, 1, 1, "states"])
    decoder.save(tmp_path / "decoder.onnx")
    feeds = {"length": np.full((1, 1, 1, 1), own + count), "states": np.arange(own + count + padding)}
    (memory,) = onnxruntime.InferenceSession(tmp_path / "decoder.onnx").run(None, feeds)
    np.testing.assert_array_equal(memory[0, 0, 0], [*[0] * own, *silent, *[MASKED] * padding])
