"""Partial text: stable words are never taken back."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from server.engine.live.stable_text import GUESSED_S, SETTLED_S, HeardToken, StableText, heard_tokens

FRAME_S = 0.08


def decode(tokens: Sequence[int]) -> str:
    """Decode tokens: even ones begin a word, 3 is punctuation, other odd ones continue a word."""
    return "".join(f" {token}" if token % 2 == 0 else "," if token == 3 else str(token) for token in tokens)


def text_of(start_s: float = 0.0) -> StableText:
    return StableText(start_s, decode)


def spoken(*tokens: int, every_s: float = 0.2, start_s: float = 0.0) -> list[HeardToken]:
    return [HeardToken(token, start_s + (index + 1) * every_s) for index, token in enumerate(tokens)]


def test_words_become_stable_when_two_hypotheses_agree_and_time_has_passed() -> None:
    text = text_of()
    text.update(spoken(2, 3, 4), 0.8)
    assert (text.stable, text.tail) == ("", "2, 4")
    text.update(spoken(2, 3, 4, 6), 0.4 + SETTLED_S + 0.1)
    assert (text.stable, text.tail) == ("2,", " 4 6")
    assert text.stable_end_s == 0.4


def test_a_word_that_may_go_on_is_not_stable() -> None:
    text = text_of()
    for end_s in (2.0, 3.0, 4.0):
        text.update(spoken(2, 3), end_s)
    assert (text.stable, text.tail) == ("", "2,")


def test_words_of_one_hypothesis_alone_are_not_stable() -> None:
    text = text_of()
    text.update(spoken(2, 4, 6), 9.0)
    text.update(spoken(8, 4, 6), 9.0)
    assert (text.stable, text.tail) == ("", "8 4 6")


def test_the_tail_of_a_later_window_goes_on_behind_the_stable_words() -> None:
    text = text_of()
    for _ in range(2):
        text.update(spoken(2, 4, 6, 8), 9.0)
    assert (text.stable, text.tail) == ("2 4 6", " 8")
    # The window begins within the stable words, and puts the last of them a frame later.
    text.update([HeardToken(6, 0.68), HeardToken(8, 0.85), HeardToken(10, 1.0)], 9.0)
    assert (text.stable, text.tail) == ("2 4 6 8", " 10")


def test_a_window_that_hears_other_words_takes_no_stable_word_back() -> None:
    text = text_of()
    for _ in range(2):
        text.update(spoken(2, 4, 6), 9.0)
    assert text.stable == "2 4"
    assert text.update(spoken(20, 22, 24), 9.0)
    assert (text.stable, text.tail) == ("2 4", " 24")


def test_another_reading_of_a_stable_word_is_not_joined_to_it() -> None:
    text = text_of()
    for _ in range(2):
        text.update(spoken(2, 4, 6), 9.0)
    text.update(spoken(2, 4, 7, 5, 8), 9.0)
    assert (text.stable, text.tail) == ("2 4", " 8")
    text.update(spoken(2, 4, 3, 8), 9.0)
    assert (text.stable, text.tail) == ("2 4", ", 8")


def test_no_change_is_told() -> None:
    text = text_of()
    assert text.update(spoken(2, 4), 0.6)
    assert not text.update(spoken(2, 4), 0.6)


def test_the_last_frames_are_guesses() -> None:
    text = text_of()
    text.update(spoken(2, 4), 0.4 + GUESSED_S / 2)
    assert text.tail == "2"


def test_runs_of_one_token_are_one_and_blanks_are_none() -> None:
    heard = heard_tokens([-1, 5, 5, -1, 5, 7], 1.0, FRAME_S)
    assert heard == [HeardToken(5, 1.0 + 3 * FRAME_S), HeardToken(5, 1.0 + 5 * FRAME_S), HeardToken(7, 1.0 + 6 * FRAME_S)]


@given(st.lists(st.lists(st.integers(-1, 9), max_size=40), max_size=8))
def test_the_stable_prefix_only_grows(hypotheses: list[list[int]]) -> None:
    text = text_of()
    stable, end_s = "", 0.0
    for best_token in hypotheses:
        end_s = max(end_s, len(best_token) * FRAME_S)
        text.update(heard_tokens(best_token, 0.0, FRAME_S), end_s)
        assert text.stable.startswith(stable)
        assert text.stable_end_s <= end_s
        stable = text.stable
        assert len(text.stable + text.tail) >= len(stable)
