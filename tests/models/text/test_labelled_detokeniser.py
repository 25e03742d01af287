"""The text behind a label, piece by piece."""

import pytest

from models.text.transcript_label import LabelledDetokeniser, TranscriptLabel
from tests.support.fakes.fake_models import END_TOKEN, tiny_tokeniser

LABEL = TranscriptLabel("language ", END_TOKEN, {"en": "English", "zh": "Chinese"})
MARK = "<mark>"
LONG = "Language learning is a long and winding road, as they say,"


@pytest.mark.parametrize(
    ("written", "text", "language", "is_silent"),
    [
        (f"language English{MARK} Hello there.", "Hello there.", "en", False),
        (f"language Chinese{MARK}", "", "zh", False),
        (f"language None{MARK}", "", None, True),
        (f"language None{MARK} Hm.", "Hm.", None, False),
        (f"language Klingon{MARK} Qapla", "Qapla", None, False),
        (" Plain words without a label.", "Plain words without a label.", None, False),
        (f"{LONG} for most.", f"{LONG} for most.", None, False),
        ("language English", "", None, False),
        ("langu", "", None, False),
        (f"language English{MARK} one{MARK} two", "one two", "en", False),
    ],
)  # fmt: skip
def test_a_label_is_no_text(written: str, text: str, language: str | None, is_silent: bool) -> None:
    detokeniser = LabelledDetokeniser(tiny_tokeniser(), (), LABEL)
    deltas = []
    for number, part in enumerate(written.split(MARK)):
        if number:
            deltas.append(detokeniser.push(END_TOKEN))
        deltas += map(detokeniser.push, tiny_tokeniser().encode(part))
    deltas.append(detokeniser.finish())
    assert "".join(deltas) == detokeniser.text == text
    assert (detokeniser.language, detokeniser.is_silent) == (language, is_silent)


def test_a_stop_string_is_looked_for_behind_the_label_only() -> None:
    detokeniser = LabelledDetokeniser(tiny_tokeniser(), ("English",), LABEL)
    for token in (*tiny_tokeniser().encode("language English"), END_TOKEN, *tiny_tokeniser().encode(" He speaks English well")):
        detokeniser.push(token)
    assert detokeniser.stopped
    assert (detokeniser.text, detokeniser.language) == ("He speaks", "en")
