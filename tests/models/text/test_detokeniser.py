"""Text deltas: whole characters only, nothing of a stop string, and together the whole text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from models.text.tokeniser import Detokeniser
from tests.support.fakes.fake_models import SPECIAL_TOKENS, tiny_tokeniser

TOKENS = st.lists(st.integers(0, 329))
# Few letters, so that beginnings of stop strings are everywhere; a wide character and whitespace among them.
LETTERS = "ab ☃\n"
STOP = st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=4).map(tuple)


def spelled(text: str) -> list[int]:
    """A token per character, or several for a wide one."""
    return [token for character in text for token in tiny_tokeniser().encode(character)]


def deltas_of(tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], str]:
    detokeniser = Detokeniser(tiny_tokeniser(), stop)
    deltas = [detokeniser.push(token) for token in tokens]
    return [*deltas, detokeniser.finish()], detokeniser.text


def cut_before_stop(text: str, stop: tuple[str, ...]) -> str:
    """Letter by letter: as soon as the text ends with a stop string, the longest one that it ends with is cut off."""
    for end in range(1, len(text) + 1):
        met = [len(string) for string in stop if text[:end].endswith(string)]
        if met:
            return text[: end - max(met)]
    return text


@settings(deadline=None)
@given(TOKENS | st.text().map(lambda text: tiny_tokeniser().encode(text)))
def test_deltas_join_to_the_stripped_text(tokens: list[int]) -> None:
    deltas, text = deltas_of(tokens)
    assert "".join(deltas) == text == tiny_tokeniser().decode(tokens).strip()


@settings(deadline=None, max_examples=100)
@given(st.text(LETTERS).map(spelled) | st.text(LETTERS).map(tiny_tokeniser().encode) | TOKENS, STOP)
def test_deltas_join_to_the_text_before_the_first_stop_string(tokens: list[int], stop: tuple[str, ...]) -> None:
    deltas, text = deltas_of(tokens, stop)
    assert "".join(deltas) == text == cut_before_stop(tiny_tokeniser().decode(tokens), stop).strip()


@settings(deadline=None)
@given(st.text(LETTERS).map(spelled), STOP)
def test_it_stops_with_the_token_that_completes_the_stop_string(tokens: list[int], stop: tuple[str, ...]) -> None:
    detokeniser = Detokeniser(tiny_tokeniser(), stop)
    for count, token in enumerate(tokens, start=1):
        detokeniser.push(token)
        assert detokeniser.stopped == any(string in tiny_tokeniser().decode(tokens[:count]) for string in stop)


@settings(deadline=None)
@given(st.text(LETTERS).map(spelled), STOP)
def test_text_is_held_back_only_while_it_may_begin_a_stop_string(tokens: list[int], stop: tuple[str, ...]) -> None:
    detokeniser = Detokeniser(tiny_tokeniser(), stop)
    for count, token in enumerate(tokens, start=1):
        detokeniser.push(token)
        whole = tiny_tokeniser().decode(tokens[:count])
        if not detokeniser.stopped and "\ufffd" not in whole:
            beginnings = [string[:length] for string in stop for length in range(1, len(string))]
            held = max((beginning for beginning in beginnings if whole.endswith(beginning)), key=len, default="")
            assert detokeniser.text == whole.removesuffix(held).strip()


def test_a_stop_string_across_tokens_is_never_sent() -> None:
    deltas, text = deltas_of(spelled("one###two"), ("###",))
    assert deltas == ["o", "n", "e", *[""] * 7]
    assert text == "one"


def test_what_only_looked_like_a_stop_string_is_sent() -> None:
    deltas, _ = deltas_of(spelled("a##b#"), ("###",))
    assert deltas == ["a", "", "", "##b", "", "#"]


def test_after_a_stop_string_nothing_is_added() -> None:
    detokeniser = Detokeniser(tiny_tokeniser(), ("b",))
    assert [detokeniser.push(token) for token in spelled("ab☃c")] == ["a", *[""] * 5]
    assert (detokeniser.finish(), detokeniser.text, detokeniser.stopped) == ("", "a", True)


def test_a_character_arrives_with_its_last_byte() -> None:
    tokens = tiny_tokeniser().encode("☃")
    assert len(tokens) == 3
    deltas, _ = deltas_of(tokens)
    assert deltas == ["", "", "☃", ""]


def test_an_answer_cut_within_a_character_ends_in_a_replacement() -> None:
    deltas, text = deltas_of(tiny_tokeniser().encode("a☃")[:-1])
    assert text == "a\ufffd"
    assert deltas[-1] == "\ufffd"


def test_outer_whitespace_is_never_sent_and_inner_whitespace_is_kept() -> None:
    deltas, text = deltas_of(spelled(" \na \nb \n"))
    assert text == "a \nb"
    assert [delta for delta in deltas if delta] == ["a", " \nb"]


def test_special_tokens_leave_no_trace() -> None:
    tokens = tiny_tokeniser().encode("☃")
    assert deltas_of([*tokens[:1], *range(len(SPECIAL_TOKENS)), *tokens[1:]])[1] == "☃"
