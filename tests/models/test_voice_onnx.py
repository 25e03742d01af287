"""The voice detector gives each window what came before it, and the same bits however the audio comes.

The graph has the inputs and outputs of Silero's and random weights.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models.protocols import BackendError, Float32
from models.runtimes.onnx.session import open_session
from models.vad.silero import CONTEXT_SAMPLES, STATE_WIDTH, OnnxVoiceDetector

WINDOW_SAMPLES = 128
WIDTH = CONTEXT_SAMPLES + WINDOW_SAMPLES


def write_graph(path: Path, window_samples: int = WINDOW_SAMPLES) -> None:
    width = CONTEXT_SAMPLES + window_samples
    random = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name)

    constants = [
        weights("W", 1, 4 * STATE_WIDTH, width),
        weights("R", 1, 4 * STATE_WIDTH, STATE_WIDTH),
        weights("B", 1, 8 * STATE_WIDTH),
        weights("head", STATE_WIDTH, 1),
        numpy_helper.from_array(np.array([-1, 1, width]), "sequence"),
        numpy_helper.from_array(np.array([-1, STATE_WIDTH]), "rows"),
        numpy_helper.from_array(np.array([-1]), "flat"),
    ]
    nodes = [
        helper.make_node("Reshape", ["input", "sequence"], ["steps"]),
        helper.make_node("LSTM", ["steps", "W", "R", "B", "", "h", "c"], ["all", "hn", "cn"], hidden_size=STATE_WIDTH),
        helper.make_node("Reshape", ["all", "rows"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["probability"]),
        helper.make_node("Reshape", ["probability", "flat"], ["speech_probs"]),
    ]

    def values(shapes: dict[str, list[int | str]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    state: list[int | str] = [1, 1, STATE_WIDTH]
    inputs = values({"input": ["windows", width], "h": state, "c": state})
    outputs = values({"speech_probs": ["windows"], "hn": state, "cn": state})
    graph = helper.make_graph(nodes, "voice", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=10), path)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("voice") / "voice.onnx"
    write_graph(path)
    return path


def audio(windows: int) -> Float32:
    return np.random.default_rng(windows).normal(0, 0.3, windows * WINDOW_SAMPLES).astype(np.float32)


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(0, 12), max_size=8))
def test_how_the_audio_is_cut_into_calls_changes_no_bit(graph: Path, lengths: list[int]) -> None:
    detector = OnnxVoiceDetector(graph, WINDOW_SAMPLES)
    whole = audio(sum(lengths))
    expected, last_state = detector.detect(whole, None)
    state, parts, done = None, [np.empty(0, np.float32)], 0
    for length in lengths:
        part = whole[done * WINDOW_SAMPLES : (done + length) * WINDOW_SAMPLES]
        probabilities, state = detector.detect(part, state)
        parts.append(probabilities)
        done += length
    assert np.concatenate(parts).tobytes() == expected.tobytes()
    if state is not None:
        assert [part.tobytes() for part in state.content] == [part.tobytes() for part in last_state.content]


def test_each_window_comes_with_the_end_of_the_one_before(graph: Path) -> None:
    whole = audio(20)
    padded = np.concatenate((np.zeros(CONTEXT_SAMPLES, np.float32), whole))
    rows = np.stack([padded[start : start + WIDTH] for start in range(0, len(whole), WINDOW_SAMPLES)])
    nothing = np.zeros((1, 1, STATE_WIDTH), np.float32)
    (expected,) = open_session(graph, 1).run(["speech_probs"], {"input": rows, "h": nothing, "c": nothing})
    assert expected.std() > 0.01
    np.testing.assert_allclose(OnnxVoiceDetector(graph, WINDOW_SAMPLES).detect(whole, None)[0], expected, atol=1e-6)


def test_a_state_can_be_gone_on_from_more_than_once(graph: Path) -> None:
    detector = OnnxVoiceDetector(graph, WINDOW_SAMPLES)
    buffer = audio(3)
    _, state = detector.detect(buffer, None)
    first, _ = detector.detect(audio(5), state)
    buffer[:] = 9
    second, _ = detector.detect(audio(5), state)
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != detector.detect(audio(5), None)[0].tobytes()


def test_a_graph_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "voice.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(BackendError, match=r"voice\.onnx could not be loaded"):
        OnnxVoiceDetector(tmp_path / "voice.onnx", WINDOW_SAMPLES)
