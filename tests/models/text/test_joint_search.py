"""The search finds the transcript with the best score of all; its slots are its own."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.llms.llama import ExactAttention, build_decoder, embedding_table
from models.protocols import BackendError, CtcDraft, DecodeRow, Float32, PrefillRow
from models.runtimes.onnx.decoder import OnnxLLM
from models.text.ctc_prefix import CtcPrefix, CtcScores
from models.text.joint_search import JointSearch
from tests.models.text.test_ctc_prefix import draft_of
from tests.support.tiny.tiny_llama import tiny_llama

CONTEXT, END = (11, 4), 2


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> OnnxLLM:
    folder = tmp_path_factory.mktemp("llm")
    llama, _ = tiny_llama()
    build_decoder(llama, max_positions=64, attention=ExactAttention).save(folder / "llm.onnx")
    np.save(folder / "embedding.npy", embedding_table(llama))
    return OnnxLLM(folder / "llm.onnx", folder / "embedding.npy", slots=1, threads=1)


def search_with(llm: OnnxLLM, hypotheses: int, margin: float = 1e9) -> JointSearch:
    return JointSearch(llm.with_slots(hypotheses), CONTEXT, END, ctc_weight=0.5, token_bonus=0.4, margin=margin)


@st.composite
def drafts(draw: st.DrawFn, most_frames: int = 3) -> CtcDraft:
    """The output of a few frames, each of which writes a blank or one of two tokens."""
    shares = draw(st.lists(st.lists(st.integers(1, 20), min_size=3, max_size=3), min_size=1, max_size=most_frames))
    whole = np.array(shares, np.float64) / np.sum(shares, 1)[:, None]
    tokens = [draw(st.permutations([30, 31, 32]))[:2] for _ in shares]
    given_speech = whole[:, 1:] / (1 - whole[:, :1])
    return draft_of(tokens, given_speech.tolist(), list(range(len(shares))), whole[:, 0].tolist())


def find(search: JointSearch, draft: CtcDraft) -> tuple[int, ...]:
    return search.find_transcript(CtcScores.of_draft(draft))


def log_softmax(logits: Float32) -> Float32:
    return np.asarray(logits - np.logaddexp.reduce(logits), np.float32)


def score(llm: OnnxLLM, search: JointSearch, draft: CtcDraft, tokens: tuple[int, ...]) -> float:
    """The score of a whole transcript, with all its tokens in one pass."""
    scores, alone = CtcScores.of_draft(draft), llm.with_slots(1)
    prefix = CtcPrefix.empty(scores)
    for token in tokens:
        prefix = prefix.extend(scores, int(np.searchsorted(scores.tokens, token)))
    row = PrefillRow(0, 0, alone.embed([*CONTEXT, *tokens]), wanted=len(tokens) + 1)
    (logits,) = alone.prefill([row])
    said = sum(float(log_softmax(row)[token]) for row, token in zip(logits, [*tokens, END], strict=True))
    return (1 - search.ctc_weight) * said + search.ctc_weight * prefix.log_whole(scores) + search.token_bonus * len(tokens)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drafts())
def test_without_limits_the_best_of_all_transcripts_is_found(llm: OnnxLLM, draft: CtcDraft) -> None:
    search = search_with(llm, hypotheses=27)
    candidates = CtcScores.of_draft(draft).tokens.tolist()
    frames = len(draft.blank_probability)
    transcripts = [tokens for count in range(frames + 1) for tokens in product(candidates, repeat=count)]
    best = max(score(llm, search, draft, tokens) for tokens in transcripts)
    assert score(llm, search, draft, find(search, draft)) == pytest.approx(best, abs=1e-3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(drafts(most_frames=8), min_size=2, max_size=4))
def test_a_transcript_depends_on_no_other_utterance(llm: OnnxLLM, utterances: list[CtcDraft]) -> None:
    search = search_with(llm, hypotheses=3, margin=4.0)
    alone = [find(search_with(llm, hypotheses=3, margin=4.0), draft) for draft in utterances]
    assert [find(search, draft) for draft in utterances] == alone


def test_more_hypotheses_find_no_worse_transcript(llm: OnnxLLM) -> None:
    random = np.random.default_rng(4)
    for _ in range(8):
        whole = random.dirichlet(np.ones(4), 9)
        tokens = [random.permutation(np.arange(20, 30))[:3].tolist() for _ in whole]
        draft = draft_of(tokens, (whole[:, 1:] / (1 - whole[:, :1])).tolist(), list(range(9)), whole[:, 0].tolist())
        few, many = (search_with(llm, hypotheses) for hypotheses in (1, 16))
        assert score(llm, many, draft, find(many, draft)) >= score(llm, few, draft, find(few, draft)) - 1e-3


def test_silence_has_no_tokens(llm: OnnxLLM) -> None:
    search = search_with(llm, hypotheses=2)
    assert find(search, draft_of([], [], [], [0.99, 0.98])) == ()
    sure_of_silence = draft_of([[30, 31]], [[0.5, 0.25]], [1], [0.999, 0.99, 0.999])
    assert find(search, sure_of_silence) == ()


def test_a_transcript_ends_where_the_slots_do(llm: OnnxLLM) -> None:
    frames = 100
    tokens = [[30 + frame % 2, 40] for frame in range(frames)]
    draft = draft_of(tokens, [[0.98, 0.01]] * frames, list(range(frames)), [0.01] * frames)
    found = find(search_with(llm, hypotheses=2), draft)
    assert len(found) <= llm.max_positions - len(CONTEXT)


def test_logits_that_are_nan_are_an_error(tmp_path: Path) -> None:
    llama, _ = tiny_llama()
    broken = replace(llama, weights={**llama.weights, "model.norm.weight": np.full(64, np.nan, np.float32)})
    build_decoder(broken, max_positions=64, attention=ExactAttention).save(tmp_path / "llm.onnx")
    np.save(tmp_path / "embedding.npy", embedding_table(llama))
    search = search_with(OnnxLLM(tmp_path / "llm.onnx", tmp_path / "embedding.npy", slots=1, threads=1), hypotheses=2)
    with pytest.raises(BackendError, match="NaN"):
        find(search, draft_of([[30, 31]], [[0.5, 0.25]], [0], [0.1]))


def test_other_slots_of_an_llm_are_left_as_they_are(llm: OnnxLLM) -> None:
    serving = llm.with_slots(2)
    rows = [PrefillRow(slot, 0, serving.embed([5 + slot, 6, 7])) for slot in range(2)]
    serving.prefill(rows)
    next_tokens = [DecodeRow(0, 3, [8]), DecodeRow(1, 3, [9])]
    expected = serving.decode(next_tokens)
    draft = draft_of([[30, 31], [32, 33]], [[0.5, 0.25]] * 2, [0, 1], [0.1, 0.2])
    find(search_with(serving, hypotheses=4), draft)
    for mine, before in zip(serving.decode(next_tokens), expected, strict=True):
        np.testing.assert_array_equal(mine, before)
