"""Quantised linear layers: the levels that are stored, and what ONNX Runtime makes of them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.graph.linear import INT4, INT8, BlockFormat, Linear, block_linear, quantise, row_linear
from models.graph.writer import GraphBuilder
from models.runtimes.onnx.session import open_session

Float32 = npt.NDArray[np.float32]

FORMATS = [BlockFormat(bits, block, symmetric) for bits in (4, 8) for block in (32, 64, 128) for symmetric in (True, False)]


def name_of(form: BlockFormat) -> str:
    return f"int{form.bits}-block{form.block}-{'symmetric' if form.symmetric else 'asymmetric'}"


def product(linear: Linear, weight: Float32, rows: Float32, folder: Path) -> Float32:
    graph = GraphBuilder("linear")
    value = graph.input("x", np.float32, ["rows", weight.shape[1]])
    graph.output(linear(graph, value, "weight", weight), "y", np.float32, ["rows", weight.shape[0]])
    graph.save(folder / "linear.onnx")
    session = open_session(folder / "linear.onnx", threads=1)
    result: Float32 = session.run(None, {"x": rows})[0]
    return result


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
def test_the_runtime_multiplies_by_the_dequantised_weight(tmp_path: Path, form: BlockFormat) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((48, 160)).astype(np.float32)  # 160 inputs leave the last block of 64 or 128 part empty
    rows = generator.standard_normal((5, 160)).astype(np.float32)
    expected = rows @ quantise(weight, form).dequantise().T
    # The remaining error is the 8-bit rounding of the activations.
    error = product(block_linear(form), weight, rows, tmp_path) - expected
    assert np.sqrt(np.mean(error**2)) < 0.01 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize(
    "linear",
    [block_linear(INT8), block_linear(INT4), row_linear(7), row_linear(8)],
    ids=["int8", "int4", "rows of 7 bits", "rows of 8 bits"],
)
def test_a_row_of_the_offered_formats_is_the_same_bits_alone_and_in_a_batch(tmp_path: Path, linear: Linear) -> None:
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((96, 192)).astype(np.float32)
    rows = (generator.standard_normal((8, 192)) * 10.0 ** np.arange(-4, 4)[:, None]).astype(np.float32)
    together = product(linear, weight, rows, tmp_path)
    for index in range(8):
        np.testing.assert_array_equal(product(linear, weight, rows[index : index + 1], tmp_path)[0], together[index])


@settings(max_examples=50, deadline=None)
@given(
    weight=arrays(np.float32, (3, 70), elements=st.floats(-100, 100, width=32)),
    form=st.sampled_from([form for form in FORMATS if form.bits == 8]),
)
def test_eight_bits_are_off_by_at_most_one_step_of_the_block(weight: Float32, form: BlockFormat) -> None:
    quantised = quantise(weight, form)
    step = np.repeat(np.abs(quantised.scales), form.block, axis=1)[:, :70]
    assert np.all(np.abs(quantised.dequantise() - weight) <= 1.01 * step)


def test_values_on_a_grid_of_sixteen_levels_survive_four_bits() -> None:
    levels = np.random.default_rng(2).integers(0, 16, (4, 64))
    levels[:, ::32], levels[:, 1::32] = 0, 15
    weight = ((levels - 6) * 0.25).astype(np.float32)
    np.testing.assert_allclose(quantise(weight, BlockFormat(4, 32, symmetric=False)).dequantise(), weight, atol=1e-6)


def test_rows_are_rounded_to_eight_bits_of_their_largest_value(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((40, 96)).astype(np.float32)
    rows = (generator.standard_normal((6, 96)) * 10.0 ** np.arange(-3, 3)[:, None]).astype(np.float32)
    expected = rows @ weight.T
    for bits, error in ((8, 0.02), (7, 0.03)):
        result = product(row_linear(bits), weight, rows, tmp_path)
        assert np.all(np.linalg.norm(result - expected, axis=1) < error * np.linalg.norm(expected, axis=1))


@pytest.mark.parametrize("bits", [7, 8])
def test_the_largest_integers_do_not_overflow(tmp_path: Path, bits: int) -> None:
    weight = np.array([1.0, -1.0], np.float32)[:, None].repeat(4096, axis=1)
    rows = np.stack([np.ones(4096), -np.ones(4096)]).astype(np.float32)
    np.testing.assert_allclose(product(row_linear(bits), weight, rows, tmp_path), rows @ weight.T, rtol=1e-6)


def test_a_row_of_zeros_stays_zeros_and_one_with_nan_throughout_is_not_hidden(tmp_path: Path) -> None:
    weight = np.ones((8, 32), np.float32)
    rows = np.stack([np.zeros(32), np.full(32, np.nan), np.ones(32)]).astype(np.float32)
    zeros, nans, ones = product(row_linear(8), weight, rows, tmp_path)
    assert not zeros.any()
    assert not np.isfinite(nans).any()
    np.testing.assert_allclose(ones, 32, rtol=0.01)
