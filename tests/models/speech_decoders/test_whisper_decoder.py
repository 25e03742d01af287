"""Whisper's decoder on ONNX Runtime: transformers' logits, and the same bits however it is run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from export.precisions import PRECISIONS
from models.graph.silent_rest import SilentRest
from models.protocols import DecodeRow, Float32, PrefillRow
from models.runtimes.onnx.decoder import OnnxMemoryDecoder
from models.speech_decoders.whisper import build_decoder, build_memory, embedding_table, rotated_decoder
from tests.support.tiny.tiny_whisper import WIDTH, decoder_arrays, random_whisper

SLOTS, VOCABULARY, MAX_STATES = 4, 300, 300
TOKENS = [1, 5, 17, 250, 9, 9, 33, 71, 71, 2]


@pytest.fixture(scope="module")
def oracle() -> WhisperForConditionalGeneration:
    return random_whisper(0, vocabulary=VOCABULARY)


def open_decoder(
    oracle: WhisperForConditionalGeneration, folder: Path, precision: str, rest: SilentRest | None = None
) -> OnnxMemoryDecoder:
    how = PRECISIONS[precision]
    arrays = how.prepare_speech_decoder(decoder_arrays(oracle))
    build_decoder(arrays, max_positions=64, linear=how.speech_decoder, head=how.head, rest=rest).save(folder / "decoder.onnx")
    build_memory(decoder_arrays(oracle), how.speech_decoder).save(folder / "memory.onnx")
    np.save(folder / "embedding.npy", embedding_table(arrays, np.float32))
    files = folder / "decoder.onnx", folder / "memory.onnx", folder / "embedding.npy"
    return OnnxMemoryDecoder(*files, max_states=MAX_STATES, slots=SLOTS, threads=1)


@pytest.fixture(scope="module", params=[None, SilentRest(200)], ids=["plain", "condensed"])
def int8(
    request: pytest.FixtureRequest, oracle: WhisperForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory
) -> OnnxMemoryDecoder:
    return open_decoder(oracle, tmp_path_factory.mktemp("int8"), "int8", request.param)


def random_states(seed: int, count: int) -> Float32:
    return np.random.default_rng(seed).normal(0, 1, (count, WIDTH)).astype(np.float32)


def reference_logits(oracle: WhisperForConditionalGeneration, states: Float32, tokens: Sequence[int]) -> Float32:
    encoded = BaseModelOutput(torch.from_numpy(states)[None])
    with torch.no_grad():
        logits: Float32 = oracle(encoder_outputs=encoded, decoder_input_ids=torch.tensor([tokens])).logits[0].numpy()
    return logits


def read_all(decoder: OnnxMemoryDecoder, slot: int, tokens: Sequence[int], position: int = 0) -> Float32:
    (logits,) = decoder.prefill([PrefillRow(slot, position, decoder.embed(tokens), len(tokens))])
    return logits


@pytest.mark.parametrize("count", [5, 64, 130])
def test_the_logits_are_those_of_transformers(oracle: WhisperForConditionalGeneration, tmp_path: Path, count: int) -> None:
    decoder, states = open_decoder(oracle, tmp_path, "fp32"), random_states(1, count)
    decoder.write_memory(2, states)
    np.testing.assert_allclose(read_all(decoder, 2, TOKENS), reference_logits(oracle, states, TOKENS), atol=2e-4)


@pytest.mark.parametrize("own", [1, 20, 31])
def test_groups_of_one_are_read_as_states_like_others(
    oracle: WhisperForConditionalGeneration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int
) -> None:
    monkeypatch.setattr(SilentRest, "WIDEST", 1)
    rest = SilentRest(32)
    decoder, states = open_decoder(oracle, tmp_path, "fp32", rest), random_states(1, own + len(rest.groups()))
    decoder.write_memory(2, states)
    np.testing.assert_allclose(read_all(decoder, 2, TOKENS), reference_logits(oracle, states[: rest.window], TOKENS), atol=2e-4)


def test_a_group_counts_as_often_as_it_has_members(oracle: WhisperForConditionalGeneration, tmp_path: Path) -> None:
    rest = SilentRest(200)
    decoder, states = open_decoder(oracle, tmp_path, "fp32", rest), random_states(1, 10 + len(rest.groups()))
    decoder.write_memory(2, states)
    inside = [
        (state, len(group)) for state, group in zip(states[10:], rest.groups(), strict=True) if 10 + group[len(group) // 2] < 200
    ]
    repeated = np.concatenate([states[:10], *(np.repeat(state[None], count, axis=0) for state, count in inside)])
    np.testing.assert_allclose(read_all(decoder, 2, TOKENS), reference_logits(oracle, repeated, TOKENS), atol=2e-4)


def test_the_rotated_weights_give_the_same_logits(oracle: WhisperForConditionalGeneration, tmp_path: Path) -> None:
    arrays, states = rotated_decoder(decoder_arrays(oracle)), random_states(1, 40)
    build_decoder(arrays, max_positions=64).save(tmp_path / "decoder.onnx")
    build_memory(decoder_arrays(oracle)).save(tmp_path / "memory.onnx")
    np.save(tmp_path / "embedding.npy", embedding_table(arrays, np.float32))
    files = tmp_path / "decoder.onnx", tmp_path / "memory.onnx", tmp_path / "embedding.npy"
    decoder = OnnxMemoryDecoder(*files, max_states=MAX_STATES, slots=SLOTS, threads=1)
    decoder.write_memory(0, states)
    np.testing.assert_allclose(read_all(decoder, 0, TOKENS), reference_logits(oracle, states, TOKENS), atol=2e-3)


@settings(deadline=None, max_examples=30)
@given(
    cuts=st.lists(st.integers(1, 4), min_size=3, max_size=10),
    counts=st.lists(st.integers(80, MAX_STATES), min_size=SLOTS, max_size=SLOTS),
)
def test_a_row_has_the_same_bits_beside_others_and_in_pieces(int8: OnnxMemoryDecoder, cuts: list[int], counts: list[int]) -> None:
    alone = []
    for number, count in enumerate(counts):
        int8.write_memory(0, random_states(number, count))
        alone.append(read_all(int8, 0, TOKENS))
    for number, count in enumerate(counts):
        int8.write_memory(number, random_states(number, count))
    done, together = 0, []
    for cut in cuts:
        piece = TOKENS[done : done + cut]
        if piece:
            together.append(int8.decode([DecodeRow(slot, done, piece) for slot in range(SLOTS)]))
        done += len(piece)
    for slot in range(SLOTS):
        np.testing.assert_array_equal(np.concatenate([logits[slot] for logits in together]), alone[slot][:done])


def test_the_memory_moves_with_the_slot(int8: OnnxMemoryDecoder) -> None:
    int8.write_memory(0, random_states(0, 100))
    expected = read_all(int8, 0, TOKENS)
    int8.write_memory(0, random_states(1, 20))
    int8.write_memory(1, random_states(0, 100))
    read_all(int8, 1, TOKENS[:6])
    int8.cache.move(1, 0, 6)
    np.testing.assert_array_equal(read_all(int8, 0, TOKENS[6:], 6), expected[6:])


def test_a_longer_memory_leaves_the_others_as_they_are(int8: OnnxMemoryDecoder) -> None:
    int8.write_memory(0, random_states(0, 10))
    expected = read_all(int8, 0, TOKENS)
    int8.write_memory(1, random_states(1, MAX_STATES))
    np.testing.assert_array_equal(read_all(int8, 0, TOKENS[5:], 5), expected[5:])


@pytest.mark.parametrize("count", [0, MAX_STATES + 64])
def test_memory_that_does_not_fit_is_refused(int8: OnnxMemoryDecoder, count: int) -> None:
    with pytest.raises(ValueError, match="a slot holds 1 to"):
        int8.write_memory(0, random_states(0, count))


START, LANGUAGE, TRANSCRIBE, TRANSLATE, LAST = 1, 5, 7, 8, 9
LENGTH = 24


def write_greedily(decoder: OnnxMemoryDecoder, slot: int, prompt: list[int], draft: list[int]) -> list[int]:
    """Write `LENGTH` tokens; before each pass the rest of the draft is proposed, of which the first tokens may stand."""
    rows, proposed = read_all(decoder, slot, prompt)[-1:], [0]
    written: list[int] = []
    while len(written) < LENGTH:
        for logits, token in zip(rows, [*proposed[1:], None], strict=True):
            written.append(int(logits.argmax()))
            if written[-1] != token:
                break
        proposed = [written[-1], *draft[len(written) : LENGTH]]
        rows = read_all(decoder, slot, proposed, len(prompt) + len(written) - 1)
    return written[:LENGTH]


@pytest.mark.parametrize("task", [TRANSCRIBE, TRANSLATE])
def test_the_text_is_that_of_transformers_with_any_draft(
    oracle: WhisperForConditionalGeneration, tmp_path: Path, task: int
) -> None:
    decoder, states = open_decoder(oracle, tmp_path, "fp32"), random_states(6, 90)
    prompt = [START, LANGUAGE, task, LAST]
    expected: list[int] = []
    for _ in range(LENGTH):
        expected.append(int(reference_logits(oracle, states, [*prompt, *expected])[-1].argmax()))
    assert len(set(expected)) > 3
    half_right = [token if number % 5 else token ^ 1 for number, token in enumerate(expected)]
    for draft in ([], expected, half_right, [3] * LENGTH):
        decoder.write_memory(1, states)
        assert write_greedily(decoder, 1, prompt, draft) == expected


def test_a_preempted_slot_goes_on_in_another_with_its_memory_written_again(int8: OnnxMemoryDecoder) -> None:
    int8.write_memory(1, random_states(0, 100))
    expected = read_all(int8, 1, TOKENS)
    state = int8.cache.read(1, 6)
    for slot, count in enumerate((30, 200, 7)):
        int8.write_memory(slot, random_states(20 + slot, count))
        read_all(int8, slot, TOKENS[::-1])
    int8.write_memory(3, random_states(0, 100))
    int8.cache.write(3, state)
    np.testing.assert_array_equal(read_all(int8, 3, TOKENS[6:], 6), expected[6:])


def test_a_slot_without_memory_is_refused(int8: OnnxMemoryDecoder) -> None:
    int8.write_memory(0, random_states(0, 10))
    with pytest.raises(ValueError, match="slots 0 to 1 have no memory"):
        int8.decode([DecodeRow(slot, 0, [1]) for slot in range(2)])
