"""Words of a draft with their times, and words that go on behind others."""

import pytest

from server.engine.runner.transcript import DraftWord, continue_words, read_words
from server.engine.types.events import Word, shift_words
from tests.support.fakes.fake_models import tiny_tokeniser

FRAME_S = 0.08


def test_a_path_is_read_as_words_with_the_times_of_their_frames() -> None:
    tokeniser = tiny_tokeniser()
    the, end = tokeniser.encode(" the"), tokeniser.encode(" end")
    assert len(the) == 1
    path = [-1, *the, *the, -1, *end, -1]
    words = read_words(path, FRAME_S, tokeniser)
    assert [word.text for word in words] == ["the", "end"]
    assert (words[0].start_s, words[0].end_s) == (FRAME_S, 3 * FRAME_S)
    assert words[1].end_s == (len(path) - 1) * FRAME_S


def test_a_word_is_as_likely_as_all_of_its_tokens_at_their_best_frames() -> None:
    tokeniser = tiny_tokeniser()
    the, end = tokeniser.encode(" the"), tokeniser.encode(" end")
    path = [*the, *the, -1, *end]
    words = read_words(path, FRAME_S, tokeniser, [0.3, 0.8, 0.9, *[0.5] * len(end)])
    assert [word.probability for word in words] == pytest.approx([0.8, 0.5 ** len(end)])


def test_a_path_of_blanks_and_one_of_spaces_have_no_words() -> None:
    tokeniser = tiny_tokeniser()
    assert read_words([-1, -1], FRAME_S, tokeniser) == []
    assert read_words(tokeniser.encode(" "), FRAME_S, tokeniser) == []


def test_heard_words_go_on_where_the_known_ones_end() -> None:
    known = [Word("one", 0.0, 0.3), Word("two", 0.3, 0.6)]
    heard = [DraftWord("on", 0.0, 0.28), DraftWord("too", 0.3, 0.64), DraftWord("three", 0.66, 0.9, 0.5)]
    words = continue_words(known, heard)
    assert [word.text for word in words] == ["one", "two", "three"]
    assert 1 > words[0].probability > words[2].probability == 0.5
    assert continue_words([], heard) == heard
    assert shift_words(known, 1.0)[1] == Word("two", 1.3, 1.6)
