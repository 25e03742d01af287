"""CTC forced alignment: the place of each token of an answer in the audio.

The LLM's answer may differ from the draft, so it is aligned with the projector's posteriors: the likeliest way in which its
tokens, in their order, fill the frames (Viterbi over the CTC topology).
"""

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from models.protocols import CtcDraft, Float32, Int64
from models.text.tokeniser import Tokeniser

Float64 = npt.NDArray[np.float64]

# The probability of a token that is not among a frame's best: enough for a word that the LLM corrected to take the place of the
# word in the draft, too little to move a word away from its place.
FLOOR = 1e-3
SILENT = 0


class Sounds:
    """The sounds of a vocabulary's tokens, as far as writing shows: case, spaces and punctuation make no difference.

    `of` [vocabulary] int64 is the number of each token's sound, `SILENT` for punctuation and spaces. `letters` [vocabulary]
    float64 counts the letters and digits.
    """

    def __init__(self, tokeniser: Tokeniser, vocabulary_size: int) -> None:
        numbers: dict[str | bytes, int] = {"": SILENT}
        forms = [spoken_form(tokeniser.token_bytes(id)) for id in range(vocabulary_size)]
        self.of = np.array([numbers.setdefault(form, len(numbers)) for form in forms], np.int64)
        self.letters = np.array([len(form) for form in forms], np.float64)


def spoken_form(token: bytes) -> str | bytes:
    """Return a token's letters and digits without case; a token that is part of a character is returned as it is."""
    try:
        return "".join(filter(str.isalnum, token.decode().casefold()))
    except UnicodeDecodeError:
        return token


def align(draft: CtcDraft, sounds: Sounds, tokens: Int64) -> Float64:
    """Return the middle of the place of each token [tokens], in frames; 0.5 is the middle of the first frame.

    No token may be silent. The result increases from one token to the next. An answer with more tokens than frames cannot have
    been said, and is laid over frames cut finer.
    """
    wanted = sounds.of[tokens]
    places = len(wanted) + np.count_nonzero(wanted[1:] == wanted[:-1])
    cuts = max(1, math.ceil(places / len(draft.blank_probability)))
    token_score, blank_score = (np.repeat(np.log(each), cuts, 0) for each in probabilities(draft, sounds, wanted))
    first, last = best_path(token_score, blank_score, wanted)
    return (first + last + 1) / 2 / cuts


def probabilities(draft: CtcDraft, sounds: Sounds, wanted: Int64) -> tuple[Float32, Float32]:
    """Return the probability of each wanted sound [frames, wanted] and of no sound or punctuation [frames]; never 0."""
    blank = draft.blank_probability
    heard = np.full((len(blank), len(wanted)), FLOOR, np.float32)
    silent = np.zeros(len(blank), np.float32)
    top = sounds.of[draft.top_tokens]
    matches = np.einsum("nk,nkw->nw", draft.top_probabilities, (top[:, :, None] == wanted).astype(np.float32))
    heard[draft.kept] = np.maximum(matches, FLOOR)
    silent[draft.kept] = (draft.top_probabilities * (top == SILENT)).sum(1)
    speech = np.maximum(1 - blank, FLOOR)
    return speech[:, None] * heard, np.maximum(blank + (1 - blank) * silent, FLOOR)


def best_path(token_score: Float32, blank_score: Float32, wanted: Int64) -> tuple[Int64, Int64]:
    """Return the first and the last frame of each token [tokens] on the likeliest path.

    Log-probabilities in: token_score [frames, tokens], blank_score [frames]. The states are blank, token, blank, ..., token,
    blank; a path moves on by none, one, or two of them, the latter over a blank between different sounds.
    """
    frames, count = token_score.shape
    states = 2 * count + 1
    scores = np.empty((frames, states), np.float32)
    scores[:, 0::2] = blank_score[:, None]
    scores[:, 1::2] = token_score
    scores[0, 2:] = -np.inf
    leap = np.full(states, -np.inf, np.float32)
    leap[3::2][wanted[1:] != wanted[:-1]] = 0
    best, leapt = np.empty(states, np.float32), np.empty(states, np.float32)
    for before, now in pairwise(scores):
        best[0] = before[0]
        np.maximum(before[1:], before[:-1], out=best[1:])
        np.add(before[:-2], leap[2:], out=leapt[2:])
        np.maximum(best[2:], leapt[2:], out=best[2:])
        now += best
    return _trace_back(scores, leap)


def _trace_back(scores: Float32, leap: Float32) -> tuple[Int64, Int64]:
    """Follow the path from the better of the last two states back to the first frame."""
    frames, states = scores.shape
    state = max(states - 1, states - 2, key=lambda end: scores[-1, end])
    path = np.empty(frames, np.int64)
    path[-1] = state
    for frame in range(frames - 2, -1, -1):
        leaps = 2 if leap[state] == 0 else 1
        state = max(range(state, max(state - leaps, 0) - 1, -1), key=scores[frame].__getitem__)
        path[frame] = state
    spoken = np.flatnonzero(path % 2)
    first, last = np.zeros(states // 2, np.int64), np.zeros(states // 2, np.int64)
    # The last value stays if an index occurs more than once.
    first[path[spoken[::-1]] // 2] = spoken[::-1]
    last[path[spoken] // 2] = spoken
    return first, last
