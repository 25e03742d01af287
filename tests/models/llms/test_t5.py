"""T5 in the engine's form: transformers' logits, tied or not and gated or not, and the same bits however it is run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5ForConditionalGeneration

from export.precisions import PRECISIONS
from models.llms.t5 import T5, build_t5_decoder, build_t5_memory
from models.protocols import DecodeRow, Float32, PrefillRow
from models.runtimes.onnx.decoder import OnnxEncoderDecoder
from tests.support.tiny.tiny_t5 import VOCABULARY, tiny_t5

SLOTS, TOKENS = 3, [0, 5, 17, 90, 9, 9, 33, 71, 71, 2, 8, 8, 14]


def open_t5(model: T5, folder: Path, precision: str) -> OnnxEncoderDecoder:
    how = PRECISIONS[precision]
    decoder = build_t5_decoder(model, max_positions=64, linear=how.body, head=how.head)
    decoder.save(folder / "decoder.onnx")
    build_t5_memory(model, max_states=150, linear=how.body).save(folder / "memory.onnx")
    np.save(folder / "embedding.npy", model.weights["shared.weight"])
    files = folder / "decoder.onnx", folder / "memory.onnx", folder / "embedding.npy"
    return OnnxEncoderDecoder(*files, max_states=150, start_token=0, slots=SLOTS, threads=1)


def prompt(seed: int, positions: int) -> Float32:
    return np.random.default_rng(seed).normal(0, 0.3, (positions, 64)).astype(np.float32)


def reference(theirs: T5ForConditionalGeneration, read: Float32, tokens: Sequence[int]) -> Float32:
    with torch.inference_mode():
        result: Float32 = theirs(
            inputs_embeds=torch.from_numpy(read)[None], decoder_input_ids=torch.tensor([tokens])
        ).logits[0].numpy()  # fmt: skip
    return result


@pytest.mark.parametrize("kind", ["gated, untied", "relu, tied"])
def test_logits_equal_transformers(kind: str, tmp_path: Path) -> None:
    gated = kind.startswith("gated")
    ours, theirs = tiny_t5(gated=gated, tied=not gated)
    decoder = open_t5(ours, tmp_path, "fp32")
    for seed, positions in enumerate((70, 3, 129)):
        read = prompt(seed, positions)
        decoder.write_memory(0, read)
        (logits,) = decoder.prefill([PrefillRow(0, 0, decoder.embed(TOKENS), wanted=len(TOKENS))])
        np.testing.assert_allclose(logits, reference(theirs, read, TOKENS), atol=2e-4)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> OnnxEncoderDecoder:
    return open_t5(tiny_t5()[0], tmp_path_factory.mktemp("t5"), "int8")


def alone(decoder: OnnxEncoderDecoder, read: Float32) -> Float32:
    decoder.write_memory(0, read)
    (logits,) = decoder.prefill([PrefillRow(0, 0, decoder.embed(TOKENS), wanted=len(TOKENS))])
    return logits


@pytest.mark.parametrize("cuts", [[1] * 13, [5, 8], [1, 12]])
def test_cuts_change_no_bit(int8: OnnxEncoderDecoder, cuts: list[int]) -> None:
    read = prompt(1, 40)
    expected = alone(int8, read)
    int8.write_memory(0, read)
    parts, position = [], 0
    for cut in cuts:
        rows = [DecodeRow(0, position, TOKENS[position : position + cut])]
        parts += int8.decode(rows)
        position += cut
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_neighbours_and_moves_change_no_bit(int8: OnnxEncoderDecoder) -> None:
    reads = [prompt(seed, positions) for seed, positions in enumerate((20, 149, 64))]
    expected = [alone(int8, read) for read in reads]
    for slot, read in enumerate(reads):
        int8.write_memory(slot, read)
    half = len(TOKENS) // 2
    rows = [PrefillRow(slot, 0, int8.embed(TOKENS[:half]), wanted=half) for slot in range(SLOTS)]
    for logits, each in zip(int8.prefill(rows), expected, strict=True):
        np.testing.assert_array_equal(logits, each[:half])
    int8.cache.move(2, 0, half)
    rest = int8.decode([DecodeRow(slot, half, TOKENS[half:]) for slot in range(2)])
    for logits, each in zip(rest, (expected[2], expected[1]), strict=True):
        np.testing.assert_array_equal(logits, each[half:])


def test_a_prompt_that_is_too_long_has_no_place(int8: OnnxEncoderDecoder) -> None:
    with pytest.raises(ValueError, match="a slot holds 1 to"):
        int8.write_memory(0, prompt(0, 300))
    assert int8.vocabulary_size == VOCABULARY
