"""The encoder on ONNX Runtime can be interrupted, and goes on to encode afterwards."""

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.protocols import EncodingInterrupted
from models.runtimes.onnx.encoder import OnnxEncoder

TIMEOUT_S = 60
ROUNDS = 1 << 60


@pytest.fixture
def encoder(tmp_path: Path) -> OnnxEncoder:
    """Return an encoder that adds 1 as often as the first feature says."""

    def tensor(name: str, kind: int, shape: list[str | int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Add", ["sum", "one"], ["next"])],
        "body",
        [tensor("round", TensorProto.INT64, []), tensor("on", TensorProto.BOOL, []), tensor("sum", TensorProto.FLOAT, [1, 1])],
        [tensor("still_on", TensorProto.BOOL, []), tensor("next", TensorProto.FLOAT, [1, 1])],
    )
    nodes = [
        helper.make_node("Cast", ["features"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["whole"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "", "zero"], ["states"], body=body),
    ]
    constants = [
        helper.make_tensor("zero", TensorProto.FLOAT, [1, 1], [0.0]),
        helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0]),
    ]
    features, states = tensor("features", TensorProto.FLOAT, [1, 1]), tensor("states", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(nodes, "counter", [features], [states], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "encoder.onnx")
    return OnnxEncoder(tmp_path / "encoder.onnx", threads=1)


def rounds(count: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.full((1, 1), count, np.float32)


def test_an_encoder_that_would_run_for_ever_is_interrupted_and_encodes_again(encoder: OnnxEncoder) -> None:
    raised: list[Exception] = []

    def encode() -> None:
        try:
            encoder.encode([rounds(3), rounds(ROUNDS)])
        except EncodingInterrupted as interruption:
            raised.append(interruption)

    thread = threading.Thread(target=encode, daemon=True)
    thread.start()
    for _ in range(TIMEOUT_S * 100):
        encoder.interrupt()
        thread.join(0.01)
        if not thread.is_alive():
            break
    assert len(raised) == 1
    assert [float(states[0, 0]) for states in encoder.encode([rounds(3), rounds(5)])] == [3.0, 5.0]


def test_an_interruption_concerns_no_later_run(encoder: OnnxEncoder) -> None:
    encoder.interrupt()
    assert [float(states[0, 0]) for states in encoder.encode([rounds(4)])] == [4.0]


def test_what_fails_by_itself_was_not_interrupted(encoder: OnnxEncoder) -> None:
    with pytest.raises(Exception) as failure:  # noqa: PT011 - ONNX Runtime's exceptions share no narrower base class
        encoder.encode([np.zeros((2, 2), np.float32)])
    assert not isinstance(failure.value, EncodingInterrupted)
