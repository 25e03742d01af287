"""Partial text: stable words are never taken back."""

from hypothesis import given
from hypothesis import strategies as st

from models.text.realignment import letters
from server.engine.live.stable_text import GUESSED_S, SETTLED_S, StableText
from server.engine.types.events import Word


def spoken(text: str, every_s: float = 0.2, start_s: float = 0.0) -> list[Word]:
    return [Word(word, start_s + number * every_s, start_s + (number + 1) * every_s) for number, word in enumerate(text.split())]


def test_words_become_stable_when_two_hypotheses_agree_and_time_has_passed() -> None:
    text = StableText(0.0)
    text.update(spoken("one, two"), 0.8)
    assert (text.stable, text.tail) == ("", "one, two")
    text.update(spoken("one, two three"), 0.2 + SETTLED_S + 0.1)
    assert (text.stable, text.tail) == ("one,", " two three")
    assert text.stable_end_s == 0.2


def test_a_last_word_may_go_on_and_is_not_stable() -> None:
    text = StableText(0.0)
    for end_s in (2.0, 3.0, 4.0):
        text.update(spoken("one"), end_s)
    assert (text.stable, text.tail) == ("", "one")


def test_words_of_one_hypothesis_alone_are_not_stable() -> None:
    text = StableText(0.0)
    text.update(spoken("one two three"), 9.0)
    text.update(spoken("none two three"), 9.0)
    assert (text.stable, text.tail) == ("", "one two three")


def test_what_is_shown_is_replaced_by_what_two_hypotheses_agree_on() -> None:
    text = StableText(0.0)
    for words in ("one two", "none so", "one two three", "none two three"):
        text.update(spoken(words), 0.77)
        assert text.tail.startswith("one two")
    assert text.update(spoken("none two four"), 0.77)
    assert (text.stable + text.tail) == "none two four"


def test_a_word_stays_as_it_was_shown_in_case_and_punctuation() -> None:
    text = StableText(0.0)
    text.update(spoken("so now"), 0.7)
    text.update(spoken("So, now search"), 0.8)
    assert (text.stable, text.tail) == ("so", " now search")
    text.update(spoken("So now, search. In"), 1.2)
    assert (text.stable, text.tail) == ("so now search", " In")
    # The draft of the next hypothesis has the words as the last ones wrote them.
    assert [word.text for word in text.words] == ["So,", "now,", "search.", "In"]


def test_a_last_word_grows() -> None:
    text = StableText(0.0)
    text.update(spoken("some"), 0.4)
    text.update([Word("Sometimes", 0.0, 0.4), Word("one", 0.4, 0.6)], 0.8)
    assert text.tail == "Sometimes one"


def test_what_a_shorter_hypothesis_lacks_stays() -> None:
    text = StableText(0.0)
    text.update(spoken("one two three"), 0.8)
    assert not text.update(spoken("one"), 0.9)
    assert text.tail == "one two three"


def test_the_tail_of_a_later_window_goes_on_behind_the_stable_words() -> None:
    text = StableText(0.0)
    for _ in range(2):
        text.update(spoken("one two three four"), 9.0)
    assert (text.stable, text.tail) == ("one two three", " four")
    # The window begins within the stable words, and puts the last of them a little later.
    text.update([Word("three", 0.44, 0.68), Word("four", 0.68, 0.85), Word("five", 0.85, 1.0)], 9.0)
    assert (text.stable, text.tail) == ("one two three four", " five")


def test_a_window_that_hears_other_words_takes_no_stable_word_back() -> None:
    text = StableText(0.0)
    for _ in range(2):
        text.update(spoken("one two three"), 9.0)
    assert text.stable == "one two"
    assert not text.update(spoken("nun tow free"), 9.0)
    assert (text.stable, text.tail) == ("one two", " three")
    assert text.update(spoken("nun tow free"), 9.0)
    assert (text.stable, text.tail) == ("one two", " free")


def test_another_reading_of_a_stable_word_does_not_follow_it() -> None:
    text = StableText(0.0)
    for _ in range(2):
        text.update(spoken("one two three"), 9.0)
    text.update([Word("one", 0.0, 0.2), Word("tooth", 0.2, 0.45), Word("three", 0.45, 0.6)], 9.0)
    assert (text.stable, text.tail) == ("one two", " three")


def test_no_change_is_told() -> None:
    text = StableText(0.0)
    assert text.update(spoken("one two"), 0.6)
    assert not text.update(spoken("one two"), 0.6)


def test_words_of_the_last_moments_are_guesses() -> None:
    text = StableText(0.0)
    text.update(spoken("one two"), 0.4 + GUESSED_S / 2)
    assert text.tail == "one"


def test_text_without_spaces_is_told_and_not_stable() -> None:
    text = StableText(0.0)
    for end_s in (2.0, 3.0, 4.0):
        assert text.update([Word("今天天气" * int(end_s), 0.0, end_s)], end_s)
    assert (text.stable, text.tail) == ("", "今天天气" * 4)


@given(st.lists(st.lists(st.sampled_from(["one", "two", "three,", "four."]), max_size=12), max_size=8), st.floats(0, 0.3))
def test_the_stable_prefix_only_grows(hypotheses: list[list[str]], later_s: float) -> None:
    text = StableText(0.0)
    stable, end_s = "", 0.0
    for number, words in enumerate(hypotheses):
        end_s = max(end_s, len(words) * 0.2 + 0.3)
        text.update(spoken(" ".join(words), start_s=number % 2 * later_s), end_s)
        assert text.stable.startswith(stable)
        assert text.stable_end_s <= end_s
        assert [letters(word.text) for word in text.words[: len(stable.split())]] == list(map(letters, stable.split()))
        stable = text.stable
