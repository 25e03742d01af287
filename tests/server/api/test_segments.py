"""Words in segments: nothing lost, nothing split, in the order of time, cut where a reader would cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.formats import LINE_CHARACTERS, LONGEST_S, PAUSE_S, lines, segments
from server.engine.types.events import Word

TEXTS = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=60)
STEPS_S = st.tuples(st.floats(0, 2), st.floats(0, 3))


@st.composite
def spoken_words(draw: st.DrawFn) -> list[Word]:
    """Return words in order, none of negative length, as an answer has them."""
    words, time_s = [], 0.0
    for text, (gap_s, length_s) in draw(st.lists(st.tuples(TEXTS, STEPS_S), max_size=40)):
        start_s = time_s + gap_s
        time_s = start_s + length_s
        words.append(Word(text, start_s, time_s))
    return words


def steady(text: str, word_s: float = 0.3) -> list[Word]:
    return [Word(word, place * word_s, (place + 1) * word_s) for place, word in enumerate(text.split())]


def texts(words: list[Word]) -> list[str]:
    return [segment.text for segment in segments(words)]


@given(spoken_words())
def test_every_word_is_in_one_segment_and_in_its_place(words: list[Word]) -> None:
    found = segments(words)
    assert " ".join(segment.text for segment in found) == " ".join(word.text for word in words)
    starts = {word.start_s for word in words}
    assert all(segment.start_s in starts and segment.start_s <= segment.end_s for segment in found)
    assert all(before.end_s <= after.start_s for before, after in pairwise(found))


@given(spoken_words())
def test_a_segment_is_short_or_a_single_word(words: list[Word]) -> None:
    for segment in segments(words):
        shown = lines(segment.text)
        assert " ".join(shown) == segment.text
        assert len(shown) <= 2
        if " " in segment.text:
            assert max(map(len, shown)) <= LINE_CHARACTERS
            assert segment.end_s - segment.start_s <= LONGEST_S


@given(spoken_words())
def test_no_segment_goes_across_a_pause(words: list[Word]) -> None:
    starts = {segment.start_s for segment in segments(words)}
    for before, after in pairwise(words):
        if after.start_s - before.end_s > PAUSE_S:
            assert after.start_s in starts


def test_sentences_are_segments_of_their_own() -> None:
    assert texts(steady('He said: "Stop!" I did not (really?). Why... go on')) == [
        'He said: "Stop!"',
        "I did not (really?).",
        "Why...",
        "go on",
    ]


def test_a_number_or_a_comma_ends_no_sentence() -> None:
    assert texts(steady("About 3.5 of them, I think, are here.")) == ["About 3.5 of them, I think, are here."]


def test_a_pause_ends_a_segment() -> None:
    words = [Word("one", 0.0, 0.5), Word("two", 0.5, 1.0), Word("three", 1.7, 2.0)]
    assert texts(words) == ["one two", "three"]


def test_a_long_sentence_is_cut_after_a_clause_rather_than_in_its_middle() -> None:
    text = "When all the boats had come back to the harbour that evening, the old man went up to his house and slept."
    assert texts(steady(text, 0.2)) == [
        "When all the boats had come back to the harbour that evening,",
        "the old man went up to his house and slept.",
    ]


def test_without_a_clause_it_is_cut_at_the_longest_pause() -> None:
    words = steady("one two three four five six seven eight nine ten eleven twelve", 0.7)
    later = [
        Word(word.text, word.start_s + 0.4 * (place > 4), word.end_s + 0.4 * (place > 4)) for place, word in enumerate(words)
    ]
    assert texts(later) == ["one two three four five", "six seven eight nine ten eleven twelve"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short", ["short"]),
        ("x" * 60, ["x" * 60]),
        ("a line of forty-two characters is not cut.", ["a line of forty-two characters is not cut."]),
        ("the one that is longer is cut near its middle", ["the one that is longer", "is cut near its middle"]),
    ],
)
def test_lines_are_of_about_the_same_length(text: str, shown: list[str]) -> None:
    assert lines(text) == shown


def test_no_words_are_no_segments() -> None:
    assert segments([]) == ()
