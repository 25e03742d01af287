"""Transcripts by a joint search: CTC scores of the speech, and an LLM that reads only the text so far as a language model.

A beam search that adds one token to every hypothesis in each step (one-pass decoding: Watanabe et al. 2017, section III-C;
arXiv 1706.02737). A score is a weighted sum of two log-probabilities, of the tokens by the LLM and of the prefix by the CTC
output, and a bonus for each token, because the LLM's share makes short transcripts likelier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.protocols import BackendError, Decoder, DecodeRow, Float32, PrefillRow
from models.text.ctc_prefix import CtcPrefix, CtcScores, Float64

PATIENCE_TOKENS = 5
"""The search goes on while the best open hypothesis lacks no more bonuses than this to be better than the best ended one."""


@dataclass(frozen=True)
class Hypothesis:
    """The beginning of a transcript: its tokens, and their log-probability by the LLM.

    It goes on from the hypothesis in the slot `parent` of the step before, by the token in `column` of the `CtcScores`.
    """

    score: float = 0.0
    tokens: tuple[int, ...] = ()
    log_llm: float = 0.0
    parent: int = 0
    column: int = -1


@dataclass(frozen=True)
class JointSearch:
    """Finds transcripts with an LLM all of whose slots belong to the search. For one thread.

    In each step the best hypotheses are kept: as many as the LLM has slots, and none that is worse than the best one by more
    than `margin`. `ctc_weight` is the share of the CTC output in a score, the LLM has the rest. The LLM's text begins behind
    the tokens `context`, and ends with `end_token`.
    """

    llm: Decoder
    context: Sequence[int]
    end_token: int
    ctc_weight: float
    token_bonus: float
    margin: float

    def find_transcript(self, scores: CtcScores) -> tuple[int, ...]:
        """Return the tokens of the best transcript, each of which some frame may write. Raises `BackendError`."""
        if not len(scores.tokens):
            return ()
        hypotheses, prefixes = [Hypothesis()], [CtcPrefix.empty(scores)]
        rows = self.llm.prefill([PrefillRow(0, 0, self.llm.embed(self.context))])
        best = Hypothesis(-np.inf)
        for position in range(len(self.context), self.llm.max_positions):
            logits = [_log_softmax(row[-1]) for row in rows]
            for hypothesis, prefix, log_llm in zip(hypotheses, prefixes, logits, strict=True):
                ended = self._end(hypothesis, prefix.log_whole(scores), float(log_llm[self.end_token]))
                best = max(best, ended, key=lambda each: each.score)
            kept = self._keep_best(scores, hypotheses, prefixes, logits)
            if kept[0].score + PATIENCE_TOKENS * self.token_bonus <= best.score:
                break
            prefixes = [prefixes[each.parent].extend(scores, each.column) for each in kept]
            self._move_slots([each.parent for each in kept], position)
            hypotheses = kept
            rows = self.llm.decode([DecodeRow(slot, position, each.tokens[-1:]) for slot, each in enumerate(kept)])
        return best.tokens

    def _end(self, hypothesis: Hypothesis, log_whole: float, log_end: float) -> Hypothesis:
        """Return a hypothesis as a whole transcript."""
        score = self._score(hypothesis.log_llm + log_end, log_whole, len(hypothesis.tokens))
        return Hypothesis(float(score), hypothesis.tokens)

    def _keep_best(
        self, scores: CtcScores, hypotheses: Sequence[Hypothesis], prefixes: Sequence[CtcPrefix], logits: Sequence[Float64]
    ) -> list[Hypothesis]:
        """Return the best of all hypotheses that are a token longer, best first."""
        length = len(hypotheses[0].tokens) + 1
        log_llm = np.stack([each.log_llm + row[scores.tokens] for each, row in zip(hypotheses, logits, strict=True)])
        log_ctc = np.stack([prefix.log_longer(scores) for prefix in prefixes])
        longer = self._score(log_llm, log_ctc, length)
        order = np.argsort(-longer, axis=None, kind="stable")[: self.llm.slots]
        places = zip(*np.unravel_index(order, longer.shape), strict=True)
        kept = [
            Hypothesis(
                score=float(longer[parent, column]),
                tokens=(*hypotheses[parent].tokens, int(scores.tokens[column])),
                log_llm=float(log_llm[parent, column]),
                parent=int(parent),
                column=int(column),
            )
            for parent, column in places
        ]
        return [each for each in kept if each.score >= kept[0].score - self.margin]

    def _score(self, log_llm: Float64 | float, log_ctc: Float64 | float, length: int) -> Float64:
        weighted = (1 - self.ctc_weight) * log_llm + self.ctc_weight * log_ctc
        return np.asarray(weighted + self.token_bonus * length)

    def _move_slots(self, parents: Sequence[int], length: int) -> None:
        """Give each slot the keys and values of the hypothesis that the one in it goes on from."""
        states = {parent: self.llm.cache.read(parent, length) for slot, parent in enumerate(parents) if parent != slot}
        for slot, parent in enumerate(parents):
            if parent != slot:
                self.llm.cache.write(slot, states[parent])


def _log_softmax(logits: Float32) -> Float64:
    """Return the log-probabilities of logits [vocabulary]. Raises `BackendError` for NaN."""
    shifted = (logits - logits.max()).astype(np.float64)
    total = np.exp(shifted).sum()
    if np.isnan(total):
        raise BackendError("The logits of the search's LLM hold NaN.")
    return np.asarray(shifted - np.log(total))
