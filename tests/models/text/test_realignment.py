"""Proposals of a draft behind a text, and the beginning of a transcript that was heard, by comparison with a draft."""

from collections.abc import Sequence

import pytest

from models.text.realignment import Draft, count_drafted

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
    assert count_drafted(text.split(), DRAFT) == kept


def test_without_a_draft_nothing_was_heard() -> None:
    assert count_drafted(["Thank", "you."], []) == 0


def letters_of(text: str) -> list[int]:
    return list(text.encode())


def text_of(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode()


@pytest.mark.parametrize(
    ("probabilities", "written", "proposed"),
    [
        ((), "", " a light roast please"),
        ((0.9, 0.9, 0.9, 0.9), "", " a light roast please"),
        ((0.9, 0.8, 0.5, 0.9), "", " a light"),
        ((0.3, 0.9, 0.9, 0.9), "", ""),
        ((0.3, 0.9, 0.9, 0.9), " The", " light roast please"),
        ((0.9, 0.9, 0.9, 0.4), " a lig", "ht roast"),
        ((0.9, 0.3, 0.9, 0.9), " a lig", ""),
        ((), " a light-", "roast please"),
    ],
)
def test_a_proposal_ends_where_its_words_are_unlikely_to_be_right_together(
    probabilities: tuple[float, ...], written: str, proposed: str
) -> None:
    draft = Draft("a light roast please", letters_of, text_of, probabilities)
    assert text_of(draft.propose(letters_of(written))) == proposed
