"""A GGUF file is read back as the model and tokeniser that were written into it."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf.constants import GGMLQuantizationType, TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from export.importers.gguf import LAYER_TENSORS, GgufError, read_llama, read_tokeniser
from models.llms.llama import LlamaConfig

Float32 = npt.NDArray[np.float32]

CONFIG = LlamaConfig(
    layers=2,
    embedding_size=64,
    heads=4,
    key_value_heads=2,
    head_size=16,
    feed_forward_size=96,
    vocabulary_size=40,
    rope_theta=100000.0,
    norm_epsilon=1e-5,
    tied=True,
)
LAYER_SHAPES = {
    "attn_norm.weight": (64,),
    "attn_q.weight": (64, 64),
    "attn_k.weight": (32, 64),
    "attn_v.weight": (32, 64),
    "attn_output.weight": (64, 64),
    "ffn_norm.weight": (64,),
    "ffn_gate.weight": (96, 64),
    "ffn_up.weight": (96, 64),
    "ffn_down.weight": (64, 96),
}
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def interleave(weight: Float32, heads: int) -> Float32:
    """llama.cpp's order: of each head, row i of the first half is followed by row i of the second."""
    halves = [np.split(head, 2) for head in np.split(weight, heads)]
    return np.concatenate([np.stack([first, second], axis=1) for first, second in halves]).reshape(weight.shape)


def gguf_tensors() -> dict[str, Float32]:
    """Under GGUF names, in the order of rows that transformers has."""
    generator = np.random.default_rng(0)
    tensors = {f"blk.{layer}.{name}": shape for layer in range(2) for name, shape in LAYER_SHAPES.items()}
    shapes = {"token_embd.weight": (40, 64), "output_norm.weight": (64,), **tensors}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_llama(path: Path, tensors: dict[str, Float32], *, architecture: str = "llama", rope_scaling: bool = False) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if rope_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    for name, weight in tensors.items():
        if name.endswith("attn_q.weight"):
            stored = interleave(weight, 4)
        elif name.endswith("attn_k.weight"):
            stored = interleave(weight, 2)
        else:
            stored = weight
        if name.endswith("ffn_up.weight"):
            writer.add_tensor(name, gguf.quantize(stored, GGMLQuantizationType.Q4_1), raw_dtype=GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(name, stored)
    return close(writer, path)


def write_tokeniser(path: Path, *, merges: Sequence[str], pre_tokeniser: str = "smollm") -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = CONTROLS + alphabet + [merge.replace(" ", "") for merge in merges]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokeniser)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(CONTROLS) + [TokenType.NORMAL] * (len(tokens) - len(CONTROLS)))
    writer.add_token_merges(merges)
    return close(writer, path)


def close(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tokeniser(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    merges = ["Ġ Ġ", "h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "Ġ 1"]
    return read_tokeniser(write_tokeniser(tmp_path_factory.mktemp("gguf") / "tokeniser.gguf", merges=merges))


def test_configuration_and_weights_are_read_back(tmp_path: Path) -> None:
    tensors = gguf_tensors()
    model = read_llama(write_llama(tmp_path / "model.gguf", tensors))
    assert model.config.norm_epsilon == pytest.approx(CONFIG.norm_epsilon)
    assert {**vars(model.config), "norm_epsilon": 0} == {**vars(CONFIG), "norm_epsilon": 0}
    assert len(model.weights) == len(tensors)
    for layer in range(2):
        for name in LAYER_SHAPES:
            weight = model.weights[f"model.layers.{layer}.{LAYER_TENSORS[name]}"]
            assert weight.dtype == np.float32
            # Q4_1 has 16 levels over each block's range, here about 4.
            tolerance = 0.3 if name == "ffn_up.weight" else 0
            np.testing.assert_allclose(weight, tensors[f"blk.{layer}.{name}"], atol=tolerance, rtol=0)
    np.testing.assert_array_equal(model.weights["model.embed_tokens.weight"], tensors["token_embd.weight"])


def test_a_separate_head_is_not_tied(tmp_path: Path) -> None:
    head = np.ones((40, 64), np.float32)
    model = read_llama(write_llama(tmp_path / "model.gguf", {**gguf_tensors(), "output.weight": head}))
    assert not model.config.tied
    np.testing.assert_array_equal(model.weights["lm_head.weight"], head)


def test_files_that_are_not_a_whole_llama_are_refused(tmp_path: Path) -> None:
    tensors = gguf_tensors()
    with pytest.raises(GgufError, match="architecture 'gemma'"):
        read_llama(write_llama(tmp_path / "gemma.gguf", tensors, architecture="gemma"))
    with pytest.raises(GgufError, match="unknown tensor rope_freqs"):
        read_llama(write_llama(tmp_path / "scaled.gguf", {**tensors, "rope_freqs.weight": np.ones(8, np.float32)}))
    with pytest.raises(GgufError, match=r"sets llama\.rope\.scaling\.type"):
        read_llama(write_llama(tmp_path / "yarn.gguf", tensors, rope_scaling=True))
    del tensors["blk.1.attn_v.weight"]
    with pytest.raises(GgufError, match=r"lacks 1 tensors, one is model\.layers\.1\.self_attn\.v_proj"):
        read_llama(write_llama(tmp_path / "part.gguf", tensors))
    (tmp_path / "text.gguf").write_bytes(b"no GGUF at all")
    with pytest.raises(GgufError, match="not a readable GGUF"):
        read_llama(tmp_path / "text.gguf")


def test_merges_and_special_tokens_apply_and_digits_stand_alone(tokeniser: Tokenizer) -> None:
    assert tokeniser.encode("hello hello").tokens == ["hello", "Ġhello"]
    assert tokeniser.encode("<|im_end|>hello").ids[0] == 2
    assert tokeniser.encode("  12").tokens == ["ĠĠ", "1", "2"]


@settings(deadline=None)
@given(st.text())
def test_text_survives_the_round_trip(tokeniser: Tokenizer, text: str) -> None:
    assert tokeniser.decode(tokeniser.encode(text).ids, skip_special_tokens=False) == text


def test_another_pre_tokeniser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="'llama-bpe'"):
        read_tokeniser(write_tokeniser(tmp_path / "other.gguf", merges=["h e"], pre_tokeniser="llama-bpe"))
