"""A graph in bfloat16 keeps float32 at its borders; 8- and 4-bit weights are stored as the standard packs them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from export.tensorrt_weights import float8_linear, int4_linear, int8_linear
from models.graph.linear import Float32, Linear, float32_linear
from models.graph.writer import BFLOAT16, FLOAT8, INT4, GraphBuilder
from models.llms.llama import build_decoder
from tests.support.tiny.tiny_llama import tiny_llama


def linear_graph(linear: Linear, weight: Float32, float_type: npt.DTypeLike = np.float32) -> GraphBuilder:
    graph = GraphBuilder("linear", float_type)
    value = graph.input("x", np.float32, ["rows", weight.shape[1]])
    graph.output(linear(graph, value, "weight", weight), "y", np.float32, ["rows", weight.shape[0]])
    return graph


def example() -> tuple[Float32, Float32]:
    """A weight [48, 128] and rows [5, 128]."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((48, 128)).astype(np.float32), generator.standard_normal((5, 128)).astype(np.float32)


def test_bfloat16_is_inside_and_float32_outside(tmp_path: Path) -> None:
    weight, rows = example()
    linear_graph(float32_linear, weight, BFLOAT16).save(tmp_path / "linear.onnx")
    model = onnx.load(tmp_path / "linear.onnx")
    assert [tensor.data_type for tensor in model.graph.initializer] == [TensorProto.BFLOAT16]
    borders = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in borders} == {TensorProto.FLOAT}
    (result,) = list(ReferenceEvaluator(model).run(None, {"x": rows}))
    assert np.abs(np.subtract(result, rows @ weight.T)).max() < 0.01 * np.abs(rows).max() * np.abs(weight).sum(1).max()


def test_the_slots_of_a_bfloat16_decoder_are_bfloat16_too(tmp_path: Path) -> None:
    build_decoder(tiny_llama()[0], float_type=BFLOAT16).save(tmp_path / "llm.onnx")
    model = onnx.load(tmp_path / "llm.onnx", load_external_data=False)
    types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    assert types["embeddings"] == types["logits"] == TensorProto.FLOAT
    assert {types[name] for name in types if name.startswith(("key_", "value_"))} == {TensorProto.BFLOAT16}


@pytest.mark.parametrize("dtype", [INT4, FLOAT8, BFLOAT16], ids=str)
@pytest.mark.parametrize("count", [3, 2048, 2049])
def test_a_weight_is_read_back_as_it_was_given(tmp_path: Path, dtype: np.dtype[np.generic], count: int) -> None:
    given = (np.arange(count) % 16 - 8).astype(dtype)
    graph = GraphBuilder("constant")
    graph.output(graph.node("Identity", graph.weight("weight", given)), "y", dtype, [count])
    graph.save(tmp_path / "constant.onnx")
    model = onnx.load(tmp_path / "constant.onnx")
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32), given.astype(np.float32)
    )


@pytest.mark.parametrize(("linear", "step"), [(int8_linear, 1 / 127), (int4_linear, 1 / 7), (float8_linear, 1 / 14)])
def test_the_runtime_multiplies_by_weights_within_half_a_step(tmp_path: Path, linear: Linear, step: float) -> None:
    weight, _ = example()
    linear_graph(linear, weight).save(tmp_path / "linear.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "linear.onnx", providers=["CPUExecutionProvider"])
    read = session.run(None, {"x": np.eye(128, dtype=np.float32)})[0].T
    error = np.abs(read - weight)
    assert (error <= 0.501 * step * np.abs(weight).max(axis=1, keepdims=True)).all()
    assert error.max() > 0


def test_four_bits_need_whole_blocks() -> None:
    with pytest.raises(ValueError, match="whole number of blocks of 64"):
        linear_graph(int4_linear, np.zeros((8, 96), np.float32))
