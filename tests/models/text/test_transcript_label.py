"""The label before a transcript."""

import pytest

from models.text.transcript_label import TranscriptLabel, lay_out_context
from tests.support.fakes.fake_models import tiny_tokeniser

LABEL = TranscriptLabel("language ", 7, {"en": "English", "zh": "Chinese"})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("language English", "en"),
        ("Language chinese ", "zh"),
        ("language None", None),
        ("language Klingon", None),
        ("", None),
        ("English", "en"),
    ],
)
def test_the_language_is_read(text: str, code: str | None) -> None:
    assert LABEL.read_language(text) == code


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("", True),
        ("lang", True),
        (" Language Eng", True),
        ("languages", False),
        ("Hello", False),
        ("language " + "x" * 50, False),
    ],
)
def test_only_the_beginning_of_a_label_is_held_back(text: str, may: bool) -> None:
    assert LABEL.may_begin(text) is may


def test_a_language_is_forced_by_its_label() -> None:
    *text, marker = LABEL.force(tiny_tokeniser(), "en")
    assert (tiny_tokeniser().decode(text), marker) == ("language English", 7)


def test_a_context_holds_the_prompt_and_the_keywords() -> None:
    assert lay_out_context(" A talk. ", ("Thinbridge", "ONNX")) == "A talk.\nThinbridge, ONNX"
    assert lay_out_context("", ()) == ""
