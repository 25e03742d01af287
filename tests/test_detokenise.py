"""Text deltas: whole characters only, and together the whole text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from server.detokenise import Detokeniser
from tests.fake_models import SPECIAL_TOKENS, tiny_tokeniser

TOKENS = st.lists(st.integers(0, 329))


def deltas_of(tokens: list[int]) -> tuple[list[str], str]:
    detokeniser = Detokeniser(tiny_tokeniser())
    deltas = [detokeniser.push(token) for token in tokens]
    return [*deltas, detokeniser.finish()], detokeniser.text


@settings(deadline=None)
@given(TOKENS | st.text().map(lambda text: tiny_tokeniser().encode(text)))
def test_deltas_join_to_the_stripped_text(tokens: list[int]) -> None:
    deltas, text = deltas_of(tokens)
    assert "".join(deltas) == text == tiny_tokeniser().decode(tokens).strip()


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
    one_by_one = [tiny_tokeniser().encode(character)[0] for character in " \na \nb \n"]
    deltas, text = deltas_of(one_by_one)
    assert text == "a \nb"
    assert [delta for delta in deltas if delta] == ["a", " \nb"]


def test_special_tokens_leave_no_trace() -> None:
    tokens = tiny_tokeniser().encode("☃")
    assert deltas_of([*tokens[:1], *range(len(SPECIAL_TOKENS)), *tokens[1:]])[1] == "☃"
