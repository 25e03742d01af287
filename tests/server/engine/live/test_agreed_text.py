"""Partial text without times of words: stable words are never taken back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.live.agreed_text import AgreedText


def agreed(*hypotheses: str) -> AgreedText:
    text = AgreedText(1.0)
    for number, hypothesis in enumerate(hypotheses, start=2):
        text.update(hypothesis, float(number))
    return text


def test_words_become_stable_when_two_hypotheses_agree_and_another_word_follows() -> None:
    text = agreed("one, two")
    assert (text.stable, text.tail, text.stable_end_s) == ("", "one, two", 1.0)
    assert text.update("one, two three", 3.0)
    assert (text.stable, text.tail, text.stable_end_s) == ("one, two", " three", 2.0)


def test_a_last_word_may_go_on_and_is_not_stable() -> None:
    text = agreed("one", "one", "one")
    assert (text.stable, text.tail) == ("", "one")


def test_a_hypothesis_that_hears_other_words_takes_no_stable_word_back() -> None:
    text = agreed("one two three", "one two three", "nun tow three four")
    assert (text.stable, text.tail) == ("one two three", " four")


def test_a_hypothesis_with_fewer_words_in_place_of_the_stable_ones_goes_on_behind_the_last_of_them() -> None:
    text = agreed("can not stop now", "can not stop now", "cannot stop now then")
    assert (text.stable, text.tail) == ("can not stop now", " then")


def test_text_without_spaces_is_told_and_not_stable() -> None:
    text = agreed("今天", "今天天气", "今天天气好")
    assert (text.stable, text.tail) == ("", "今天天气好")


def test_no_change_is_told() -> None:
    text = AgreedText(0.0)
    assert text.update("one", 1.0)
    assert not text.update(" one ", 2.0)


@settings(max_examples=40)
@given(st.lists(st.lists(st.sampled_from(["one", "two", "three,"]), max_size=12), max_size=8))
def test_the_stable_prefix_only_grows(hypotheses: list[list[str]]) -> None:
    text, stable = AgreedText(0.0), ""
    for number, words in enumerate(hypotheses, start=1):
        text.update(" ".join(words), float(number))
        assert text.stable.startswith(stable)
        assert 0.0 <= text.stable_end_s < number
        assert not text.tail or text.tail.startswith(" ") == bool(text.stable)
        stable = text.stable
