"""How probable a CTC output finds all transcripts that begin with given tokens (Watanabe et al. 2017, algorithm 2)."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from models.ctc import NO_TOKEN
from models.protocols import CtcDraft, Float32, Int64
from models.text.alignment import best_path

Float64 = npt.NDArray[np.float64]

LOWEST = 1e-300
"""Added to a probability before its logarithm is taken."""
NEGLIGIBLE = 1e-12
"""Of the probabilities of a prefix, those that are smaller beside the largest are taken for 0."""


@dataclass(frozen=True)
class CtcScores:
    """The CTC output of an utterance: `tokens` [n] that any frame may write, `probabilities` [T, n] and `blank` [T]."""

    tokens: Int64
    probabilities: Float64
    blank: Float64

    @classmethod
    def of_draft(cls, draft: CtcDraft) -> Self:
        """Take the scores of a draft, which has them of the best tokens of its kept frames; all others count as impossible."""
        tokens, places = np.unique(draft.top_tokens, return_inverse=True)
        probabilities = np.zeros((len(draft.blank_probability), len(tokens)))
        spoken = 1 - draft.blank_probability[draft.kept].astype(np.float64)
        probabilities[draft.kept[:, None], places.reshape(draft.top_tokens.shape)] = draft.top_probabilities * spoken[:, None]
        return cls(tokens, probabilities, draft.blank_probability.astype(np.float64))

    def best_path(self, tokens: Int64) -> tuple[Int64, Float32]:
        """Return the likeliest path that writes these tokens, of which there has to be one: each frame's token [T] and its
        probability, -1 and 0 where the frame is blank.
        """
        path, probability = np.full(len(self.blank), NO_TOKEN, np.int64), np.zeros(len(self.blank), np.float32)
        if not len(tokens):
            return path, probability
        columns = np.searchsorted(self.tokens, tokens)
        wanted = self.probabilities[:, columns]
        token_score, blank_score = (np.log(each + LOWEST).astype(np.float32) for each in (wanted, self.blank))
        for number, (first, last) in enumerate(zip(*best_path(token_score, blank_score, tokens), strict=True)):
            path[first : last + 1] = tokens[number]
            probability[first : last + 1] = wanted[first : last + 1, number]
        return path, probability


@dataclass(frozen=True)
class CtcPrefix:
    """The probabilities that some number of frames has written just this prefix.

    `in_token` and `in_blank` [n] are those of `first` frames, `first` + 1 and so on; they tell apart whether the last frame is
    the prefix's last token or a blank, and are scaled, by exp(-`log_scale`). Numbers of frames that are left out are
    `NEGLIGIBLE`. `last` is the column of the last token in `CtcScores`, -1 of the empty prefix.
    """

    first: int
    in_token: Float64
    in_blank: Float64
    last: int = -1
    log_scale: float = 0.0

    @classmethod
    def empty(cls, scores: CtcScores) -> Self:
        """Return the prefix without a token."""
        silent = np.concatenate([[1.0], scores.blank.cumprod()])
        silent = silent[silent > NEGLIGIBLE]
        return cls(0, np.zeros(len(silent)), silent)

    def log_whole(self, scores: CtcScores) -> float:
        """Return the log-probability that the prefix is all that was said."""
        is_at_end = self.first + len(self.in_token) == len(scores.blank) + 1
        whole = self.in_token[-1] + self.in_blank[-1] if is_at_end else 0.0
        return float(np.log(whole + LOWEST)) + self.log_scale

    def log_longer(self, scores: CtcScores) -> Float64:
        """Return for each token the log-probability [n] of all transcripts that begin with the prefix and that token."""
        probabilities = scores.probabilities[self.first : self.first + len(self.in_token)]
        in_token, in_blank = self.in_token[: len(probabilities)], self.in_blank[: len(probabilities)]
        longer = (in_token + in_blank) @ probabilities
        if self.last >= 0:
            # The same token once more needs a blank between.
            longer[self.last] = in_blank @ probabilities[:, self.last]
        return np.asarray(np.log(longer + LOWEST) + self.log_scale)

    def extend(self, scores: CtcScores, column: int) -> "CtcPrefix":
        """Return the prefix with one more token."""
        before = self.in_blank if column == self.last else self.in_token + self.in_blank
        probability, blank = scores.probabilities[self.first :, column], scores.blank[self.first :].tolist()
        entering = (before[: len(probability)] * probability[: len(before)]).tolist()
        in_token, in_blank, likeliest = [0.0], [0.0], LOWEST
        for frame, (stays, is_blank) in enumerate(zip(probability.tolist(), blank, strict=True)):
            silence, token = (in_blank[-1] + in_token[-1]) * is_blank, in_token[-1] * stays
            if frame < len(entering):
                token += entering[frame]
            elif token + silence < NEGLIGIBLE * likeliest:
                break
            in_token.append(token)
            in_blank.append(silence)
            likeliest = max(likeliest, token, silence)
        tokens, blanks = np.array(in_token) / likeliest, np.array(in_blank) / likeliest
        wanted = np.flatnonzero(tokens + blanks >= NEGLIGIBLE)
        kept = slice(wanted[0], wanted[-1] + 1) if len(wanted) else slice(0, 1)
        log_scale = self.log_scale + float(np.log(likeliest))
        return CtcPrefix(self.first + kept.start, tokens[kept], blanks[kept], column, log_scale)
