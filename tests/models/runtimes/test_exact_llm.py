"""The LLM's contract: a position's logits are the same bits however a sequence is cut, batched, moved or copied."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.precisions import PRECISIONS
from models.llms.llama import ExactAttention, build_decoder, embedding_table
from models.protocols import DecodeRow, Float32, PrefillRow
from models.runtimes.onnx.decoder import OnnxLLM
from tests.support.tiny.tiny_llama import MAX_POSITIONS, VOCABULARY, tiny_llama

SLOTS = 4
MODELS = [("int8", 1), ("int8", 2), ("int8", 4), ("int4", 2)]

Texts = list[list[int]]
texts_of_all_slots = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=100), min_size=1, max_size=SLOTS)


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: f"{model[0]}-{model[1]}-key-heads")
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxLLM:
    name, key_value_heads = request.param
    folder, precision = tmp_path_factory.mktemp("llm"), PRECISIONS[name]
    model, _ = tiny_llama(key_value_heads=key_value_heads)
    graph = build_decoder(model, max_positions=MAX_POSITIONS, attention=ExactAttention, body=precision.body, head=precision.head)
    graph.save(folder / "llm.onnx")
    np.save(folder / "embedding.npy", embedding_table(model))
    return OnnxLLM(folder / "llm.onnx", folder / "embedding.npy", slots=SLOTS, threads=1)


def prefill(llm: OnnxLLM, slot: int, position: int, tokens: list[int], wanted: int | None = None) -> Float32:
    wanted = len(tokens) if wanted is None else wanted
    return llm.prefill([PrefillRow(slot, position, llm.embed(tokens), wanted)])[0]


def assert_same_bits(left: Float32, right: Float32) -> None:
    np.testing.assert_array_equal(left.view(np.uint32), right.view(np.uint32))


@settings(max_examples=25, deadline=None)
@given(texts=texts_of_all_slots, data=st.data())
def test_any_cut_in_any_batch_gives_the_bits_of_one_pass(llm: OnnxLLM, texts: Texts, data: st.DataObject) -> None:
    whole = [prefill(llm, 0, 0, text) for text in texts]
    done = [data.draw(st.integers(1, len(text) - 1), label="prompt") for text in texts]
    for slot, (text, length) in enumerate(zip(texts, done, strict=True)):
        cut = data.draw(st.integers(1, length), label="cut")
        assert_same_bits(prefill(llm, slot, 0, text[:cut]), whole[slot][:cut])
        if cut < length:
            assert_same_bits(prefill(llm, slot, cut, text[cut:length], 1), whole[slot][length - 1 : length])
    while any(length < len(text) for text, length in zip(texts, done, strict=True)):
        rows = []
        for slot, (text, length) in enumerate(zip(texts, done, strict=True)):
            end = min(length + data.draw(st.integers(1, 5), label="tokens"), len(text))
            start = min(length, end - 1)  # a finished text says its last token again
            rows.append(DecodeRow(slot, start, text[start:end]))
        for row, logits in zip(rows, llm.decode(rows), strict=True):
            done[row.slot] = row.position + len(row.tokens)
            assert_same_bits(logits, whole[row.slot][row.position : done[row.slot]])


@settings(max_examples=25, deadline=None)
@given(texts=texts_of_all_slots, data=st.data())
def test_prefilling_several_slots_at_once_gives_the_bits_of_each_alone(llm: OnnxLLM, texts: Texts, data: st.DataObject) -> None:
    whole = [prefill(llm, 0, 0, text) for text in texts]
    cuts = [data.draw(st.integers(1, len(text) - 1), label="cut") for text in texts]
    for bounds in ([(0, cut) for cut in cuts], [(cut, len(text)) for cut, text in zip(cuts, texts, strict=True)]):
        rows = []
        for slot, (text, (start, end)) in enumerate(zip(texts, bounds, strict=True)):
            wanted = data.draw(st.integers(0, end - start), label="wanted")
            rows.append(PrefillRow(slot, start, llm.embed(text[start:end]), wanted))
        for row, (_, end), logits in zip(rows, bounds, llm.prefill(rows), strict=True):
            assert_same_bits(logits, whole[row.slot][end - row.wanted : end])


@settings(max_examples=25, deadline=None)
@given(
    text=st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=100),
    draft=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8),
    data=st.data(),
)
def test_a_rejected_draft_and_a_copied_or_moved_slot_change_nothing(
    llm: OnnxLLM, text: list[int], draft: list[int], data: st.DataObject
) -> None:
    whole = prefill(llm, 0, 0, text)
    cut = data.draw(st.integers(1, len(text) - 1))
    prefill(llm, 0, 0, text[:cut])
    llm.decode([DecodeRow(0, cut, draft)])
    state = llm.cache.read(0, cut)
    llm.cache.move(0, 2, cut)
    prefill(llm, 0, 0, draft)
    llm.cache.write(1, state)
    for slot in (1, 2):
        assert_same_bits(prefill(llm, slot, cut, text[cut:]), whole[cut:])
    assert state.length == cut
    assert state.nbytes == llm.cache.read(2, cut).nbytes


@pytest.mark.parametrize(("lengths", "runs"), [([1, 17, 1, 1], 1), ([40, 9], 1), ([100, 9], 2), ([9, 9, 100, 100], 2)])
def test_rows_share_a_run_where_that_adds_little_padding(
    llm: OnnxLLM, monkeypatch: pytest.MonkeyPatch, lengths: list[int], runs: int
) -> None:
    texts = [np.random.default_rng(length).integers(0, VOCABULARY, length).tolist() for length in lengths]
    whole = [prefill(llm, 0, 0, text) for text in texts]
    batches: list[Sequence[PrefillRow]] = []
    run = llm._run

    def recorded(rows: Sequence[PrefillRow]) -> list[Float32]:
        batches.append(rows)
        return run(rows)

    monkeypatch.setattr(llm, "_run", recorded)
    logits = llm.decode([DecodeRow(slot, 0, text) for slot, text in enumerate(texts)])
    assert len(batches) == runs
    for row, expected in zip(logits, whole, strict=True):
        assert_same_bits(row, expected)


def test_a_batch_that_cannot_be_padded_at_the_end_of_a_slot_runs_all_the_same(llm: OnnxLLM) -> None:
    text = np.random.default_rng(0).integers(0, VOCABULARY, MAX_POSITIONS).tolist()
    whole = prefill(llm, 0, 0, text)
    prefill(llm, 1, 0, text[:9])
    last, drafted = llm.decode([DecodeRow(0, MAX_POSITIONS - 1, text[-1:]), DecodeRow(1, 9, text[9:13])])
    assert_same_bits(last, whole[-1:])
    assert_same_bits(drafted, whole[9:13])


def test_a_prefill_may_want_no_logits(llm: OnnxLLM) -> None:
    text = list(range(9))
    whole = prefill(llm, 0, 0, text)
    assert prefill(llm, 1, 0, text[:5], wanted=0).shape == (0, VOCABULARY)
    assert_same_bits(prefill(llm, 1, 5, text[5:]), whole[5:])


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("poisoned", [0, 3, 5])
def test_a_poisoned_request_leaves_nothing_behind_in_its_slot(llm: OnnxLLM, poisoned: int, wanted: int) -> None:
    text = list(range(10, 19))
    clean = prefill(llm, 0, 0, text)
    poison = llm.embed(text[:6])
    poison[poisoned] = np.nan
    (logits,) = llm.prefill([PrefillRow(0, 0, poison, wanted)])
    assert not np.isfinite(logits).any()
    assert_same_bits(prefill(llm, 0, 0, text), clean)
