"""The exported llama graph computes what transformers computes, however its input is cut, padded, batched or moved."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from transformers import LlamaForCausalLM

from models.llms.llama import AttentionWriter, ExactAttention, Llama, StandardAttention, build_decoder, embedding_table
from models.protocols import BackendError, DecodeRow, PrefillRow
from models.runtimes.onnx.decoder import OnnxLLM
from tests.support.tiny.tiny_llama import MAX_POSITIONS, tiny_llama, tiny_qwen

Float32 = npt.NDArray[np.float32]
Logits = Callable[[list[int]], Float32]

TOLERANCE = 1e-4


def load(model: Llama, folder: Path, attention: AttentionWriter, *, slots: int = 4) -> OnnxLLM:
    build_decoder(model, max_positions=MAX_POSITIONS, attention=attention).save(folder / "llm.onnx")
    np.save(folder / "embeddings.npy", embedding_table(model, np.float32))
    return OnnxLLM(folder / "llm.onnx", folder / "embeddings.npy", slots=slots, threads=1)


@pytest.fixture(params=[StandardAttention, ExactAttention])
def attention(request: pytest.FixtureRequest) -> AttentionWriter:
    chosen: AttentionWriter = request.param
    return chosen


@pytest.fixture
def pair(tmp_path: Path, attention: AttentionWriter) -> tuple[OnnxLLM, Logits]:
    """The exported tiny model, and transformers' logits [tokens, vocabulary] of a whole sequence."""
    ours, theirs = tiny_llama()
    return load(ours, tmp_path, attention), reference(theirs)


def reference(model: LlamaForCausalLM) -> Logits:
    @torch.no_grad()
    def logits(tokens: list[int]) -> Float32:
        array: Float32 = model(torch.tensor([tokens])).logits[0].numpy()
        return array

    return logits


def tokens_of(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 96, count)]


def prefill(llm: OnnxLLM, slot: int, tokens: list[int], position: int = 0) -> Float32:
    logits: Float32 = llm.prefill([PrefillRow(slot, position, llm.embed(tokens))])[0][0]
    return logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_prefill_equals_transformers(tmp_path: Path, attention: AttentionWriter, tied: bool, key_value_heads: int) -> None:
    ours, theirs = tiny_llama(tied=tied, key_value_heads=key_value_heads)
    llm = load(ours, tmp_path, attention)
    tokens = tokens_of(1, 12)
    np.testing.assert_allclose(prefill(llm, 0, tokens), reference(theirs)(tokens)[-1], atol=TOLERANCE)


def test_qwen2_with_its_biases_equals_transformers(tmp_path: Path, attention: AttentionWriter) -> None:
    ours, theirs = tiny_qwen()
    llm = load(ours, tmp_path, attention)
    tokens = tokens_of(13, 12)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(prefill(llm, 0, tokens[:7]), expected[6], atol=TOLERANCE)
    np.testing.assert_allclose(prefill(llm, 0, tokens[7:], position=7), expected[11], atol=TOLERANCE)


def test_decode_steps_and_chunked_prefill_equal_one_pass(pair: tuple[OnnxLLM, Logits]) -> None:
    llm, expected = pair
    tokens = tokens_of(2, 16)
    whole = expected(tokens)
    np.testing.assert_allclose(prefill(llm, 0, tokens[:5]), whole[4], atol=TOLERANCE)
    np.testing.assert_allclose(prefill(llm, 0, tokens[5:12], position=5), whole[11], atol=TOLERANCE)
    for position in range(12, 16):
        logits = llm.decode([DecodeRow(0, position, [tokens[position]])])
        np.testing.assert_allclose(logits[0][0], whole[position], atol=TOLERANCE)


def test_rows_of_different_lengths_decode_in_one_batch_as_alone(pair: tuple[OnnxLLM, Logits]) -> None:
    llm, expected = pair
    texts = [tokens_of(seed, length) for seed, length in ((3, 4), (4, 11), (5, 7))]
    first = llm.prefill([PrefillRow(slot, 0, llm.embed(text[:-1])) for slot, text in enumerate(texts)])
    together = llm.decode([DecodeRow(slot, len(text) - 1, text[-1:]) for slot, text in enumerate(texts)])
    for slot, text in enumerate(texts):
        np.testing.assert_allclose(first[slot][0], expected(text)[-2], atol=TOLERANCE)
        np.testing.assert_allclose(together[slot][0], expected(text)[-1], atol=TOLERANCE)
        alone = prefill(llm, 3, text[:-1])
        np.testing.assert_array_equal(alone, first[slot][0])


def test_a_reused_slot_shows_nothing_of_its_last_request(pair: tuple[OnnxLLM, Logits]) -> None:
    llm, expected = pair
    prefill(llm, 0, tokens_of(6, 30))
    tokens = tokens_of(7, 6)
    np.testing.assert_allclose(prefill(llm, 0, tokens), expected(tokens)[-1], atol=TOLERANCE)


def test_a_moved_request_goes_on_undisturbed(pair: tuple[OnnxLLM, Logits]) -> None:
    llm, expected = pair
    tokens = tokens_of(8, 9)
    prefill(llm, 2, tokens[:8])
    prefill(llm, 0, tokens_of(9, 20))
    llm.cache.move(2, 0, 8)
    prefill(llm, 2, tokens_of(10, 20))
    np.testing.assert_allclose(llm.decode([DecodeRow(0, 8, tokens[8:])])[0][0], expected(tokens)[-1], atol=TOLERANCE)


def test_a_padded_batch_prefill_of_the_standard_graph_equals_each_row_alone(tmp_path: Path) -> None:
    model, theirs = tiny_llama()
    build_decoder(model, max_positions=MAX_POSITIONS).save(tmp_path / "llm.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "llm.onnx", providers=["CPUExecutionProvider"])
    table, texts = embedding_table(model, np.float32), [tokens_of(11, 5), tokens_of(12, 9)]
    padded = np.stack([np.resize(table[text], (9, 64)) for text in texts])
    names = [f"{kind}_{layer}" for layer in range(2) for kind in ("key", "value")]
    slots = {name: np.zeros((2, 2, MAX_POSITIONS, 16), np.float32) for name in names}
    step = {"write_index": np.zeros(2, np.int64), "kv_length": np.full(2, 9), "positions": np.tile(np.arange(9), (2, 1))}
    logits, *written = session.run(None, {**slots, **step, "embeddings": padded, "wanted": np.array([[0, 4], [1, 8], [1, 2]])})
    for row, text, index in ((0, texts[0], 4), (1, texts[1], 8), (2, texts[1], 2)):
        np.testing.assert_allclose(logits[row], reference(theirs)(text)[index], atol=TOLERANCE)

    # The next token overwrites the first padded position; the rest of the padding stays out of sight.
    slots = dict(zip(names, written, strict=True))
    step = {"write_index": np.array([5, 9]), "kv_length": np.array([6, 10]), "positions": np.array([[5], [9]])}
    logits, *_ = session.run(None, {**slots, **step, "embeddings": table[[[17], [18]]], "wanted": np.array([[0, 0], [1, 0]])})
    for row, token in ((0, 17), (1, 18)):
        np.testing.assert_allclose(logits[row], reference(theirs)([*texts[row], token])[-1], atol=TOLERANCE)


def test_the_standard_graph_uses_the_standard_alone_and_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        build_decoder(tiny_llama()[0]).save(tmp_path / name / "llm.onnx")
        files.append([(tmp_path / name / file).read_bytes() for file in ("llm.onnx", "llm.onnx.data")])
    assert files[0] == files[1]
    assert {node.domain for node in onnx.load_model_from_string(files[0][0]).graph.node} == {""}


def test_misuse_is_refused(pair: tuple[OnnxLLM, Logits]) -> None:
    llm, _ = pair
    with pytest.raises(ValueError, match="beyond the slot's 128 positions"):
        prefill(llm, 0, tokens_of(0, 10), position=119)
    with pytest.raises(ValueError, match="in order"):
        llm.decode([DecodeRow(1, 0, [5])])
    with pytest.raises(ValueError, match="out of range"):
        prefill(llm, 4, tokens_of(0, 3))


def test_files_that_do_not_load_or_fit_are_backend_errors(tmp_path: Path) -> None:
    model, _ = tiny_llama()
    build_decoder(model).save(tmp_path / "llm.onnx")
    np.save(tmp_path / "embeddings.npy", np.zeros((96, 32), np.float32))
    with pytest.raises(BackendError, match="and the LLM takes"):
        OnnxLLM(tmp_path / "llm.onnx", tmp_path / "embeddings.npy")
    with pytest.raises(BackendError, match="could not be loaded"):
        OnnxLLM(tmp_path / "missing.onnx", tmp_path / "embeddings.npy")
