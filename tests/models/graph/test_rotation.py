"""A rotated llama or encoder computes the same, and rounding to 8 bits by rows costs it less where activations have outliers."""

from pathlib import Path

import numpy as np

from models.encoders.whisper import build_encoder, mean_preserving_rotation, rotated_encoder
from models.graph.linear import Linear, float32_linear, row_linear
from models.graph.rotation import random_rotation, spreading_rotation
from models.llms.llama import ExactAttention, Llama, build_decoder, embedding_table, rotated
from models.protocols import Float32, PrefillRow
from models.runtimes.onnx.decoder import OnnxLLM
from models.runtimes.onnx.encoder import OnnxEncoder
from tests.models.graph.test_linear import product
from tests.support.tiny.tiny_llama import MAX_POSITIONS, tiny_llama, tiny_qwen
from tests.support.tiny.tiny_whisper import MEL_BINS, arrays_of, random_encoder

TOKENS = list(range(30))


def logits(model: Llama, linear: Linear, folder: Path) -> Float32:
    build_decoder(model, max_positions=MAX_POSITIONS, attention=ExactAttention, body=linear, head=linear).save(
        folder / "llm.onnx"
    )
    np.save(folder / "embedding.npy", embedding_table(model, np.float32))
    llm = OnnxLLM(folder / "llm.onnx", folder / "embedding.npy", slots=1, threads=1)
    return llm.prefill([PrefillRow(0, 0, llm.embed(TOKENS), len(TOKENS))])[0]


def test_rotations_are_orthogonal_and_that_of_the_encoder_keeps_the_mean() -> None:
    spreading = [spreading_rotation(size).matrix for size in (48, 10, 56)]
    for rotation in (random_rotation(48), *spreading, mean_preserving_rotation(48)):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=1e-12)
    np.testing.assert_allclose(mean_preserving_rotation(48) @ np.ones(48), np.ones(48), atol=1e-12)


def test_a_rotation_by_its_factors_is_the_product_with_its_matrix() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 896))
    for size in (896, 64, 7):
        rotation = spreading_rotation(size)
        np.testing.assert_allclose(rotation.turn(rows[:, :size]), rows[:, :size] @ rotation.matrix.T, atol=1e-12)


def test_a_rotated_model_gives_the_same_logits(tmp_path: Path) -> None:
    for model, _ in (tiny_llama(tied=True), tiny_llama(tied=False), tiny_qwen()):
        expected = logits(model, float32_linear, tmp_path)
        np.testing.assert_allclose(logits(rotated(model), float32_linear, tmp_path), expected, atol=1e-5 * np.abs(expected).max())


def test_a_rotated_encoder_gives_the_same_states(tmp_path: Path) -> None:
    arrays = arrays_of(random_encoder(0))
    features = np.random.default_rng(1).standard_normal((MEL_BINS, 64)).astype(np.float32)
    states = []
    for name, each in (("plain", arrays), ("rotated", rotated_encoder(arrays))):
        build_encoder(each).save(tmp_path / f"{name}.onnx")
        states += OnnxEncoder(tmp_path / f"{name}.onnx", threads=1).encode([features])
    np.testing.assert_allclose(states[1], states[0], atol=1e-4)


def test_a_product_rounded_by_rows_loses_less_to_an_outlier_after_rotation(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows, weight = (generator.standard_normal((count, 128)).astype(np.float32) for count in (16, 32))
    rows[:, 5] *= 50
    weight[:, 5] /= 50
    rotation = random_rotation(128).astype(np.float32)
    errors = [
        np.abs(product(row_linear(8), each_weight, each_rows, tmp_path) - rows @ weight.T).mean()
        for each_rows, each_weight in ((rows, weight), (rows @ rotation.T, weight @ rotation.T))
    ]
    assert errors[1] < errors[0] / 2
