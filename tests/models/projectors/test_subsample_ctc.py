"""The adapter's graph gives in serving what its torch module gave in training."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from export.tensorrt_speech import build_dense_adapter
from models.ctc import NO_TOKEN, collapse
from models.projectors.subsample import read_adapter
from models.projectors.subsample_ctc import build_adapter
from models.runtimes.onnx.projector import ADAPTER_OUTPUTS, OnnxProjector, run_starts
from models.runtimes.onnx.session import open_session
from training.adapter import Adapter, AdapterConfig
from training.bridge import bridge, ctc_runs
from training.ctc import greedy_tokens

VOCABULARY = 200
EMBEDDING = np.random.default_rng(0).standard_normal((VOCABULARY, 24)).astype(np.float32)


def random_adapter(subsampling: str) -> Adapter:
    torch.manual_seed(1)
    config = AdapterConfig(
        encoder_width=16,
        width=32,
        layers=2,
        heads=4,
        feed_forward=48,
        embedding_size=24,
        subsampling=subsampling,
        boundary_vectors=2,
    )
    adapter = Adapter(config).eval()
    torch.nn.init.normal_(adapter.residual.weight, std=0.2)
    return adapter


def served(adapter: Adapter, folder: Path, blank_threshold: float) -> OnnxProjector:
    metadata = {"config": json.dumps({**asdict(adapter.config), "blank_threshold": blank_threshold})}
    save_file(adapter.state_dict(), folder / "adapter.safetensors", metadata=metadata)
    build_adapter(read_adapter(folder / "adapter.safetensors"), EMBEDDING).save(folder / "adapter.onnx")
    boundaries = np.zeros((2, 24), np.float32)
    return OnnxProjector(folder / "adapter.onnx", EMBEDDING, boundaries, boundaries, threads=1)


def states(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(count).standard_normal((count, 16)).astype(np.float32)


@pytest.mark.parametrize("subsampling", ["uniform", "stack"])
@pytest.mark.parametrize("count", [4, 40, 300])
def test_graph_equals_the_trained_module(subsampling: str, count: int, tmp_path: Path) -> None:
    adapter = random_adapter(subsampling)
    output = served(adapter, tmp_path, blank_threshold=0.5).project([states(count)])[0]
    table = torch.from_numpy(EMBEDDING)
    with torch.inference_mode():
        hidden, _ = adapter(torch.from_numpy(states(count))[None], torch.tensor([count // 4]))
        queries, blank = adapter.token_queries(hidden)[0], adapter.blank(hidden)[0, :, 0]
        runs = ctc_runs(queries, blank, table, blank_threshold=0.5)
        frames = bridge(adapter, hidden[0], runs, table)
    assert np.abs(output.require_draft().blank_probability - torch.sigmoid(blank).numpy()).max() < 1e-5
    assert output.embeddings.shape == frames.shape
    assert np.abs(output.embeddings - frames.numpy()).max(initial=0) < 1e-4
    assert list(collapse(output.require_draft().best_token)) == greedy_tokens(queries, blank, table)


def test_the_dense_graph_scores_a_kept_frame_as_the_other_does(tmp_path: Path) -> None:
    adapter = random_adapter("uniform")
    sparse = served(adapter, tmp_path, blank_threshold=0.5)
    build_dense_adapter(read_adapter(tmp_path / "adapter.safetensors"), EMBEDDING, np.float32).save(tmp_path / "dense.onnx")
    dense = open_session(tmp_path / "dense.onnx", 1)
    blank, tokens, probabilities, residual = dense.run(
        ["blank_probability", "top_tokens", "top_probabilities", "residual"], {"states": states(300)}
    )
    expected = dict(zip(ADAPTER_OUTPUTS, sparse._session.run(ADAPTER_OUTPUTS, {"states": states(300)}), strict=True))
    kept = expected["kept"]
    assert 0 < len(kept) < len(blank) == 75
    np.testing.assert_allclose(blank, expected["blank_probability"], atol=1e-6)
    np.testing.assert_array_equal(tokens[kept], expected["top_tokens"])
    np.testing.assert_allclose(probabilities[kept], expected["top_probabilities"], atol=1e-6)
    np.testing.assert_allclose(residual[kept], expected["residual"], atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_all_or_no_frames_are_kept_at_the_ends_of_the_threshold(threshold: float, tmp_path: Path) -> None:
    output = served(random_adapter("uniform"), tmp_path, threshold).project([states(24)])[0]
    best_token = output.require_draft().best_token
    kept = (best_token != NO_TOKEN).sum()
    assert kept == (6 if threshold == 1.0 else 0)
    assert len(output.embeddings) == len(run_starts(np.arange(kept), best_token[best_token != NO_TOKEN]))
    assert np.isfinite(output.embeddings).all()


def test_an_utterance_in_a_batch_is_what_it_is_alone(tmp_path: Path) -> None:
    adapter = served(random_adapter("uniform"), tmp_path, blank_threshold=0.5)
    batch = [states(count) for count in (8, 200, 44)]
    for together, alone in zip(adapter.project(batch), (adapter.project([each])[0] for each in batch), strict=True):
        assert np.array_equal(together.embeddings, alone.embeddings)
        assert np.array_equal(together.require_draft().best_token, alone.require_draft().best_token)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=30))
def test_runs_begin_at_another_token_and_after_every_gap(frames: list[tuple[bool, int]]) -> None:
    kept = np.array([index for index, (is_kept, _) in enumerate(frames) if is_kept], np.int64)
    best = np.array([token for is_kept, token in frames if is_kept], np.int64)
    expected = []
    for position, (frame, token) in enumerate(zip(kept, best, strict=True)):
        before = frames[frame - 1] if frame else (False, 0)
        if not before[0] or before[1] != token:
            expected.append(position)
    assert run_starts(kept, best).tolist() == expected
