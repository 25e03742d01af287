"""The beginning of a transcript that was heard, by comparison with a draft."""

import pytest

from models.text.realignment import count_heard

DRAFT = ["Epo", "morphine", "is", "not", "allied", "in", "fisiological", "action", "to", "morphine"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Apomorphine is not allied in physiological action to morphine.", 9),
        ("Apomorphine is not allied in physiological action to morphine. Apomorphine is not allied to it in action.", 9),
        ("Apomorphine is not allied in physiological action to morphine and so on and so on and so on and so on", 9),
        ("Apomorphine is not allied", 4),
        ("", 0),
    ],
)
def test_the_words_behind_the_drafts_end_were_not_heard(text: str, kept: int) -> None:
    assert count_heard(text.split(), DRAFT) == kept


def test_without_a_draft_nothing_was_heard() -> None:
    assert count_heard(["Thank", "you."], []) == 0
