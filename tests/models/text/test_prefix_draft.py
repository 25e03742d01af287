"""A CTC output proposes what is likely behind a text, wherever that has come in the audio."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.protocols import CtcDraft
from models.text.prefix_draft import LEAST_LIKELIHOOD, MOST_TOKENS, PrefixDraft
from tests.models.text.test_ctc_prefix import draft_of

THE, CAT, SAT, ON, A, MAT, HAT, AND = range(10, 18)


def heard(*frames: tuple[int, int] | int, sure: float = 0.9) -> CtcDraft:
    """An output with a blank behind each token, and of each pair the second token less likely than the first; -1 for a blank."""
    tokens: list[list[int]] = []
    probabilities: list[list[float]] = []
    kept: list[int] = []
    blank: list[float] = []
    for frame in frames:
        if frame != -1:
            first, second = frame if isinstance(frame, tuple) else (frame, 0)
            kept.append(len(blank))
            tokens.append([first, second])
            probabilities.append([sure, (1 - sure) * 0.9])
        blank += [0.98] if frame == -1 else [0.02, 0.98]
    return draft_of(tokens, probabilities, kept, blank)


SENTENCE = heard(THE, (CAT, HAT), SAT, ON, A, MAT, sure=0.99)


def test_a_sure_output_is_proposed_as_a_whole() -> None:
    assert PrefixDraft(SENTENCE).propose([]) == [THE, CAT, SAT, ON, A, MAT]


def test_silence_proposes_nothing() -> None:
    assert PrefixDraft(heard(-1, -1, -1)).propose([]) == []
    assert PrefixDraft(draft_of([], [], [], [])).propose([]) == []


@pytest.mark.parametrize(
    ("written", "follows"),
    [
        ([THE, HAT], [SAT, ON, A, MAT]),  # another word in its place
        ([THE, CAT, AND, SAT], [ON, A, MAT]),  # a word more
        ([THE, SAT], [ON, A, MAT]),  # a word less
        ([THE, 90, 91, 92, SAT], [ON, A, MAT]),  # a word that is spelt in three tokens, all of them unexpected
        ([THE, CAT, SAT, ON, A, MAT], []),
        ([THE, CAT, SAT, ON, A, MAT, AND, AND], []),
    ],
)
def test_it_goes_on_where_the_text_has_come_in_the_audio(written: list[int], follows: list[int]) -> None:
    assert PrefixDraft(SENTENCE).propose(written) == follows


def test_what_was_written_decides_between_tokens_of_neighbouring_frames() -> None:
    ambiguous = heard((CAT, HAT), (CAT, AND), (MAT, SAT), sure=0.6)
    assert PrefixDraft(ambiguous).propose([CAT])[:1] == [CAT]
    # The first frame's second token was written, so that the second frame's first one is still to come.
    assert PrefixDraft(ambiguous).propose([HAT])[:1] == [CAT]
    assert PrefixDraft(ambiguous).propose([HAT, AND])[:1] == [MAT]


def test_a_proposal_ends_where_it_is_unlikely_to_be_right_as_a_whole() -> None:
    proposal = PrefixDraft(heard(*[(token, token + 20) for token in range(30, 50)], sure=0.8)).propose([])
    assert 0 < len(proposal) < 20
    assert 0.7 ** len(proposal) > LEAST_LIKELIHOOD / 4
    assert PrefixDraft(draft_of([[CAT, HAT, MAT, SAT]], [[0.26, 0.25, 0.25, 0.24]], [0], [0.01])).propose([]) == []


def test_a_long_output_is_proposed_in_parts() -> None:
    tokens = list(range(100, 100 + 3 * MOST_TOKENS))
    draft = PrefixDraft(heard(*tokens, sure=0.9999))
    written: list[int] = []
    while proposal := draft.propose(written):
        assert len(proposal) <= MOST_TOKENS
        written += proposal
    assert written == tokens


@given(st.lists(st.integers(10, 20), min_size=1, max_size=12), st.lists(st.integers(10, 22), max_size=10), st.integers(0, 10))
def test_a_proposal_depends_on_nothing_but_the_output_and_the_text(frames: list[int], written: list[int], first: int) -> None:
    output = heard(*frames)
    draft = PrefixDraft(output)
    draft.propose(written[:first])
    proposal = draft.propose(written)
    assert proposal == PrefixDraft(output).propose(written)
    assert set(proposal) <= set(np.unique(output.top_tokens).tolist())
