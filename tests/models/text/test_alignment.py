"""The alignment is the likeliest of all, which a search through all of them finds too."""

from itertools import groupby, pairwise, product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.protocols import CtcDraft, Float32, Int64
from models.text.alignment import SILENT, Sounds, align, best_path
from tests.support.fakes.fake_models import sure_output, tiny_tokeniser, tokeniser_definition

SOUNDS = Sounds(tiny_tokeniser(), len(tokeniser_definition()["model"]["vocab"]))
BLANK = -1


def ids(text: str) -> Int64:
    return np.array(tiny_tokeniser().encode(text), np.int64)


THE, END, OF, FILE, COMMA = (int(ids(text)[0]) for text in ("the", " end", " of", " file", ","))


def heard(*frames: int) -> CtcDraft:
    """An output that is sure of these tokens and blanks, one a frame."""
    return sure_output(np.empty((0, 8), np.float32), np.array(frames, np.int64)).require_draft()


def middles(output: CtcDraft, text: str) -> list[float]:
    return list(align(output, SOUNDS, ids(text)))


@st.composite
def scored(draw: st.DrawFn) -> tuple[Float32, Float32, Int64]:
    """Log-probabilities of a few tokens and of the blank in a few frames, which are enough for them."""
    wanted = draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    places = len(wanted) + sum(a == b for a, b in pairwise(wanted))
    frames = draw(st.integers(places, 6))
    score = st.integers(-9, 0)
    # A sound has one probability in a frame, however often it is wanted.
    by_sound = np.array(draw(st.lists(st.tuples(score, score, score), min_size=frames, max_size=frames)), np.float32)
    return by_sound[:, wanted], by_sound[:, 0], np.array(wanted, np.int64)


def spans(path: tuple[int, ...]) -> list[tuple[int, int]]:
    """The first and the last frame of each run of a token."""
    runs = [(label, [frame for frame, _ in run]) for label, run in groupby(enumerate(path), lambda pair: pair[1])]
    return [(frames[0], frames[-1]) for label, frames in runs if label != BLANK]


@given(scored())
def test_the_path_is_the_likeliest_of_all(case: tuple[Float32, Float32, Int64]) -> None:
    token_score, blank_score, wanted = case
    scores = {}
    for path in product([BLANK, *range(len(wanted))], repeat=len(blank_score)):
        places = [place for place, _ in groupby(path)]
        said = [place for place in places if place != BLANK]
        repeats = pairwise(places)
        merged = any(BLANK not in pair and wanted[pair[0]] == wanted[pair[1]] for pair in repeats)
        if said == list(range(len(wanted))) and not merged:
            scores[tuple(spans(path))] = sum(
                blank_score[frame] if place == BLANK else token_score[frame, place] for frame, place in enumerate(path)
            )
    first, last = best_path(token_score, blank_score, wanted)
    found = tuple(zip(first.tolist(), last.tolist(), strict=True))
    assert scores[found] == max(scores.values())


def test_tokens_are_where_they_were_heard() -> None:
    assert middles(heard(BLANK, THE, BLANK, BLANK, END, END, BLANK, OF, BLANK), "the end of") == [1.5, 5.0, 7.5]


def test_case_spaces_and_punctuation_have_no_sound() -> None:
    assert SOUNDS.of[THE] == SOUNDS.of[ids(" the")[0]] != SILENT
    assert SOUNDS.of[ids("T")[0]] == SOUNDS.of[ids("t")[0]] != SILENT
    assert (SOUNDS.of[ids(".,!? -\n")] == SILENT).all()
    assert (SOUNDS.letters[THE], SOUNDS.letters[END], SOUNDS.letters[COMMA]) == (3, 3, 0)


def test_a_part_of_a_character_sounds_like_itself_only() -> None:
    first, second = SOUNDS.of[ids("é")]
    assert len({first, second, SILENT}) == 3


def test_a_comma_that_was_heard_is_no_word() -> None:
    assert middles(heard(THE, COMMA, COMMA, END), "the end") == [0.5, 3.5]


def test_a_word_that_the_llm_put_right_takes_the_place_of_what_was_heard() -> None:
    assert middles(heard(THE, BLANK, BLANK, FILE, BLANK, BLANK, OF), "the end of") == [0.5, 3.5, 6.5]


def test_a_word_that_the_llm_left_out_moves_none_of_the_others() -> None:
    assert middles(heard(THE, BLANK, FILE, BLANK, BLANK, OF), "the of") == [0.5, 5.5]


@given(
    st.lists(st.sampled_from([BLANK, THE, END, OF]), min_size=1, max_size=12),
    st.lists(st.sampled_from([THE, END, OF, FILE]), min_size=1, max_size=40),
)
def test_any_answer_has_a_place_for_each_token(frames: list[int], tokens: list[int]) -> None:
    """However little it has to do with what was heard, and even where it is longer than that."""
    found = align(heard(*frames), SOUNDS, np.array(tokens, np.int64))
    assert len(found) == len(tokens)
    assert (np.diff(found) > 0).all()
    assert found[0] > 0
    assert found[-1] < len(frames)
