"""A tiny random Qwen2 in a GGUF file gives the logits and the tokens that transformers gets from the same file."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf.constants import GGMLQuantizationType, TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.importers.gguf import GgufError, read_llama, read_tokeniser
from models.llms.llama import ExactAttention, build_decoder, embedding_table, rotated
from models.protocols import PrefillRow
from models.runtimes.onnx.decoder import OnnxLLM
from models.text.tokeniser import Tokeniser

MERGES = ["Ġ Ġ", "h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "Ġ 1", "' s", "Ċ Ċ", "Ã ©"]
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
TYPES = [
    *([TokenType.NORMAL] * len(TOKENS)),
    *([TokenType.CONTROL] * 3),
    TokenType.USER_DEFINED,
    TokenType.UNUSED,
]
TOKENS += ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "[PAD271]"]
VOCABULARY = len(TOKENS)
WIDTH, FEED_FORWARD, HEADS, KEY_VALUE_HEADS, LAYERS = 256, 512, 4, 2, 2
KEY_WIDTH = WIDTH // HEADS * KEY_VALUE_HEADS
QUANTISED = {
    "attn_q.weight": GGMLQuantizationType.Q5_0,
    "attn_v.weight": GGMLQuantizationType.Q8_0,
    "ffn_gate.weight": GGMLQuantizationType.Q4_K,
    "ffn_down.weight": GGMLQuantizationType.Q6_K,
    "token_embd.weight": GGMLQuantizationType.Q5_0,
    "output.weight": GGMLQuantizationType.Q8_0,
}


def write_qwen(path: Path, *, tied: bool = False, biases: bool = True) -> Path:
    """Write a model whose weights have all the tensor types of a Q4_K_M file."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_eos_token_id(TOKENS.index("<|im_end|>"))
    layer = {
        "attn_norm.weight": (WIDTH,),
        "attn_q.weight": (WIDTH, WIDTH),
        "attn_k.weight": (KEY_WIDTH, WIDTH),
        "attn_v.weight": (KEY_WIDTH, WIDTH),
        "attn_output.weight": (WIDTH, WIDTH),
        "ffn_norm.weight": (WIDTH,),
        "ffn_gate.weight": (FEED_FORWARD, WIDTH),
        "ffn_up.weight": (FEED_FORWARD, WIDTH),
        "ffn_down.weight": (WIDTH, FEED_FORWARD),
        **({"attn_q.bias": (WIDTH,), "attn_k.bias": (KEY_WIDTH,), "attn_v.bias": (KEY_WIDTH,)} if biases else {}),
    }
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    if not tied:
        shapes["output.weight"] = (VOCABULARY, WIDTH)
    for number in range(LAYERS):
        shapes |= {f"blk.{number}.{name}": shape for name, shape in layer.items()}
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        kind = QUANTISED.get(name.split(".", 2)[-1] if name.startswith("blk") else name, GGMLQuantizationType.F32)
        if kind in (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K):
            writer.add_tensor(name, random_blocks(generator, shape, kind), raw_dtype=kind)
            continue
        weight = generator.normal(1.0 if "norm" in name else 0.0, 0.1, shape).astype(np.float32)
        writer.add_tensor(name, weight if kind == GGMLQuantizationType.F32 else gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(generator: np.random.Generator, shape: tuple[int, ...], kind: GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    """Return random levels with small scales, in a format that the gguf package reads and does not write."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = generator.integers(0, 256, (shape[0], shape[1] // 256, size), np.uint8)
    scale = np.array([2e-5], np.float16).view(np.uint8)
    at = slice(0, 2) if kind == GGMLQuantizationType.Q4_K else slice(size - 2, size)
    blocks[..., at] = scale
    if kind == GGMLQuantizationType.Q4_K:
        blocks[..., 2:4] = scale
    return blocks.reshape(shape[0], -1)


@pytest.fixture(scope="module")
def tokenisers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Ours, and transformers' of the same file."""
    path = write_qwen(tmp_path_factory.mktemp("qwen") / "model.gguf")
    return read_tokeniser(path), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_the_logits_are_those_of_transformers(tmp_path: Path, tied: bool, turned: bool) -> None:
    path = write_qwen(tmp_path / "model.gguf", tied=tied)
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, VOCABULARY, 20)]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
        expected = theirs(torch.tensor([tokens])).logits[0].numpy()
    model = read_llama(path)
    assert model.config.tied == tied
    decoder = build_decoder(rotated(model) if turned else model, max_positions=128, attention=ExactAttention)
    decoder.save(tmp_path / "llm.onnx")
    np.save(tmp_path / "embedding.npy", embedding_table(model, np.float32))
    llm = OnnxLLM(tmp_path / "llm.onnx", tmp_path / "embedding.npy", slots=1, threads=1)
    found = llm.prefill([PrefillRow(0, 0, llm.embed(tokens), len(tokens))])[0]
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_qwen2_without_its_biases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=r"lacks 6 tensors, one is model\.layers\.0\.self_attn\.k_proj\.bias"):
        read_llama(write_qwen(tmp_path / "model.gguf", biases=False))


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from(" \n\r\t'shello12é\u0301")))
def test_text_has_the_tokens_of_transformers(tokenisers: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = tokenisers
    assert ours.encode(text).ids == theirs(text, add_special_tokens=False)["input_ids"]


def test_control_and_added_tokens_are_one_token_in_a_template_and_none_in_text(tmp_path: Path) -> None:
    read_tokeniser(write_qwen(tmp_path / "model.gguf")).save(str(tmp_path / "tokenizer.json"))
    tokeniser = Tokeniser.from_file(tmp_path / "tokenizer.json")
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
    assert tokeniser.special_tokens == {name: TOKENS.index(name) for name in names}
    for name in names:
        assert tokeniser.encode_template(name) == [TOKENS.index(name)]
        assert tokeniser.decode(tokeniser.encode(name)) == name
    assert tokeniser.token_bytes(TOKENS.index("[PAD271]")) == b""
