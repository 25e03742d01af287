"""The voice detector: its state goes on from call to call, and how audio is cut into calls changes no bit."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.graph import GraphBuilder
from models.backends import BackendError
from models.voice_onnx import CONTEXT_SAMPLES, STATE_WIDTH, OnnxVoiceDetector

WINDOW = 512


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> OnnxVoiceDetector:
    """A graph with Silero's inputs and outputs, in which everything depends on all that came before."""
    graph = GraphBuilder("voice")
    audio = graph.input("input", np.float32, [1, CONTEXT_SAMPLES + WINDOW])
    hidden = graph.input("h", np.float32, [1, 1, STATE_WIDTH])
    cell = graph.input("c", np.float32, [1, 1, STATE_WIDTH])
    loudness = graph.node("ReduceMean", graph.node("Abs", audio), keepdims=1)
    half = graph.weight("half", np.array(0.5, np.float32))
    new_hidden = graph.node("Add", graph.node("Mul", hidden, half), loudness)
    new_cell = graph.node("Add", graph.node("Mul", cell, half), new_hidden)
    probability = graph.node("Tanh", graph.node("ReduceMean", new_cell, keepdims=0))
    graph.output(probability, "speech_probs", np.float32, [])
    graph.output(new_hidden, "hn", np.float32, [1, 1, STATE_WIDTH])
    graph.output(new_cell, "cn", np.float32, [1, 1, STATE_WIDTH])
    path = tmp_path_factory.mktemp("voice") / "voice.onnx"
    graph.save(path)
    return OnnxVoiceDetector(path, WINDOW)


AUDIO = np.random.default_rng(0).normal(size=20 * WINDOW).astype(np.float32)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), max_size=8))
def test_calls_do_not_matter(detector: OnnxVoiceDetector, cuts: list[int]) -> None:
    whole, _ = detector.detect(AUDIO, None)
    state, parts, start = None, [], 0
    for windows in [*cuts, 20]:
        part = AUDIO[start : start + windows * WINDOW]
        probabilities, state = detector.detect(part, state)
        parts.append(probabilities)
        start += len(part)
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_sessions_do_not_meet(detector: OnnxVoiceDetector) -> None:
    alone, _ = detector.detect(AUDIO, None)
    _, other = detector.detect(AUDIO[::-1].copy(), None)
    first, state = detector.detect(AUDIO[: 3 * WINDOW], None)
    detector.detect(AUDIO[: 3 * WINDOW], other)
    rest, _ = detector.detect(AUDIO[3 * WINDOW :], state)
    assert np.concatenate([first, rest]).tobytes() == alone.tobytes()


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "voice.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError):
        OnnxVoiceDetector(tmp_path / "voice.onnx", WINDOW)
