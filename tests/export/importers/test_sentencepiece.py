"""A `tokenizer.model` gives SentencePiece's own ids, in prompts too, and text never becomes a special token."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.safetensors_file import CheckpointError
from export.importers.sentencepiece import BPE, UNIGRAM, write_sentencepiece
from models.text.tokeniser import PromptTemplate, Tokeniser, lay_out_prompt
from tests.support.tiny.reference_tokenisers import encode_sentencepiece, tiny_pieces, write_model

TEXTS = st.text("the roab▁<s>/[INST]\n\u0416é\U0001f600", max_size=24)
KINDS = {"bpe": BPE, "unigram": UNIGRAM}
TOKENISERS = {
    name: Tokeniser.from_json(write_sentencepiece(write_model(tiny_pieces(kind), kind), {})) for name, kind in KINDS.items()
}

FEWER = tiny_pieces(UNIGRAM, spells_bytes=False)
WITHOUT_BYTES = Tokeniser.from_json(write_sentencepiece(write_model(FEWER, UNIGRAM, byte_fallback=False), {}))


@pytest.mark.parametrize("name", list(KINDS))
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_ids_are_the_references(name: str, text: str) -> None:
    tokeniser, kind = TOKENISERS[name], KINDS[name]
    ids = tokeniser.encode_after((), text)
    expected = encode_sentencepiece(text, tiny_pieces(kind), kind)
    # Two orders of the same pieces are equally good to a unigram model.
    assert ids == expected if kind == BPE else sorted(ids) == sorted(expected)
    assert not set(ids) & set(tokeniser.special_tokens.values())


@pytest.mark.parametrize("name", list(KINDS))
@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_a_text_within_others_comes_back_as_it_was(name: str, text: str) -> None:
    tokeniser = TOKENISERS[name]
    assert tokeniser.decode(tokeniser.encode(text)) == text.replace("▁", " ")


@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_what_a_vocabulary_without_bytes_cannot_spell_is_unknown(text: str) -> None:
    ids = WITHOUT_BYTES.encode_after((), text)
    assert sorted(ids) == sorted(encode_sentencepiece(text, FEWER, UNIGRAM))
    assert not set(ids) & (set(WITHOUT_BYTES.special_tokens.values()) - {WITHOUT_BYTES.special_tokens["<unk>"]})


def test_spaces_are_joined_where_the_model_says_so() -> None:
    pieces = tiny_pieces(BPE)
    tokeniser = Tokeniser.from_json(write_sentencepiece(write_model(pieces, BPE, joins_spaces=True), {}))
    assert tokeniser.encode_after((), "  the   then ") == encode_sentencepiece("the then", pieces, BPE)


def test_an_instruction_is_read_as_in_the_whole_prompt() -> None:
    tokeniser, pieces = TOKENISERS["bpe"], tiny_pieces(BPE)
    inst = tokeniser.special_tokens["[INST]"]

    def lay_out(prefix: str, suffix: str) -> tuple[int, ...]:
        template = PromptTemplate(
            prefix=tuple(tokeniser.encode_template(prefix)),
            after_instruction=(),
            suffix=tuple(tokeniser.encode_template(suffix, before=(-1,))),
            end_tokens=(2,),
        )
        return lay_out_prompt(template, tokeniser, "the or<s>").before_speech + template.suffix

    def read(text: str) -> list[int]:
        return encode_sentencepiece(text, pieces, BPE)

    assert lay_out("[INST]", "") == (inst, *read("the or<s>"))
    assert lay_out("[INST] ", "") == (inst, *read(" the or<s>"))
    assert lay_out("ab ", " the") == (*read("ab the or<s> the"),)
    assert lay_out("ab\n", "</s>") == (*read("ab\nthe or<s>"), 2)


def test_further_tokens_are_special() -> None:
    added = {"500": {"content": "<|im_end|>"}}
    tokeniser = Tokeniser.from_json(write_sentencepiece(write_model(tiny_pieces(BPE), BPE), added))
    assert tokeniser.encode_template("<|im_end|>") == [500]
    assert 500 not in tokeniser.encode("<|im_end|>")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it has no pieces"),
        (b"\xff" * 40, "it is cut short"),
        (write_model(tiny_pieces(BPE), BPE)[:-3], "it is cut short"),
        (write_model(tiny_pieces(BPE), 3), "it is of the kind word; known are bpe and unigram"),
        (b"\x0f\x00", "it is no message of protocol buffers"),
    ],
)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"has a tokenizer\.model that cannot be used") as raised:
        Checkpoint(tmp_path, "it").open_tokeniser()
    assert expected in str(raised.value)
