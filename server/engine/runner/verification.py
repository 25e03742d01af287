"""From logits to the tokens of an answer: the LLM's own choice at every position, whatever the draft proposes.

A proposal saves passes; it changes no token, except under the relaxed policy.
"""

import logging
from dataclasses import dataclass, field

import numpy as np

from models.chain import Models
from models.protocols import BackendError, Float32
from models.speech_decoders.speech_model import NO_SPEECH_PROBABILITY
from models.text.grammar import GrammarError
from models.text.tokeniser import plain_words
from server.engine.runner.sequence import SequenceState
from server.engine.runner.speculation import DraftGate
from server.engine.types.stats import DRAFT_POSITIONS
from server.errors import InvalidConstraint

logger = logging.getLogger(__name__)


# A relaxed transcript ends at most this many tokens after the draft's end. All speech is in the draft, and an LLM that
# goes on after it may repeat itself.
RELAXED_OVERRUN = 8
# A relaxed transcript takes a token of the draft that is at least this probable. Of 0.3 to 0.003 the word error rate on held-out
# recordings of the training data differs by a tenth of a point.
RELAXED_PROBABILITY = 0.05


@dataclass
class RunnerCounters:
    """Totals since the start; the fields have the meaning that they have in `EngineCounters`."""

    progress: int = 0
    llm_passes: int = 0
    generated_tokens: int = 0
    drafted: list[int] = field(default_factory=lambda: [0] * DRAFT_POSITIONS)
    accepted: list[int] = field(default_factory=lambda: [0] * DRAFT_POSITIONS)
    preemptions: int = 0


class Verifier:
    """Chooses tokens from logits, counts accepted drafts, and learns in `gate` for which instructions drafts help."""

    def __init__(self, models: Models, counters: RunnerCounters) -> None:
        self.gate = DraftGate()
        self._models = models
        self._counters = counters

    def take_logits(self, sequence: SequenceState, logits: Float32) -> None:
        """Add the tokens that the logits of the newest token and of the proposal after it give, up to the first mismatch.

        The accepted part of the proposal is in the slot already. Each token is as without a proposal: it comes from the same
        logits, and its randomness depends on nothing but the seed and its place in the answer.
        """
        proposal, accepted = sequence.proposal, 0
        if np.isnan(logits.max()):
            # A NaN behind a mismatch counts too: the LLM clears a slot that holds any.
            sequence.fail(BackendError("The logits hold NaN."))
            return
        for index, row in enumerate(logits):
            token = self._choose_token(sequence, row)
            if token is None:
                break
            if index == len(proposal) or token != proposal[index]:
                break
            accepted += 1
            sequence.position += 1
            if sequence.finished:
                break
        sequence.proposal = ()
        if proposal and not sequence.forced:
            self._count_draft(sequence, len(proposal), accepted)

    def _choose_token(self, sequence: SequenceState, logits: Float32) -> int | None:
        """Return the next token, which is added to the answer, or None if the answer ended instead."""
        sampler, constraint = sequence.sampler, sequence.request.task.sampling.constraint
        try:
            token = sampler.choose(sequence.token_constraint.mask(logits), sequence.tokens)
        except BackendError as error:
            logger.error("request %s: %s", sequence.request.id, error)
            sequence.fail(error)
            return None
        except GrammarError as error:
            sequence.fail(InvalidConstraint.because("constraint" if constraint is None else constraint.kind, error))
            return None
        relaxed = sequence.request.task.draft == "relaxed"
        if relaxed:
            token = self._relax(sequence, logits, token)
        if sequence.transcribing:
            return self._take_spoken_token(sequence, logits, token)
        if token in self._models.template.end_tokens or (relaxed and sequence.draft.overrun >= RELAXED_OVERRUN):
            sequence.finish("stop")
            return None
        if sequence.request.task.sampling.logprobs is not None:
            sequence.logprobs.append(sampler.logprob(logits, token, self._models.tokeniser))
        self._counters.generated_tokens += 1
        sequence.append(token)
        return token

    def _take_spoken_token(self, sequence: SequenceState, logits: Float32, token: int) -> int | None:
        """Add a token of a transcript, and note how likely it is; the logits of the first tell whether there is speech at all."""
        speech = self._models.require_speech()
        if not sequence.tokens:
            sequence.no_speech_probability = sequence.sampler.probability(logits, speech.tokens.no_speech)
        is_text = len(sequence.tokens) >= sequence.control_tokens
        # Only where there may be no speech does anything ask how likely the text is, which costs a pass over the vocabulary.
        if is_text and sequence.no_speech_probability > NO_SPEECH_PROBABILITY:
            sequence.logprob_sum += float(np.log(max(sequence.sampler.probability(logits, token), 1e-30)))
        if token == speech.tokens.end:
            sequence.finish("stop")
            return None
        if is_text:
            if sequence.request.task.sampling.logprobs is not None:
                sequence.logprobs.append(sequence.sampler.logprob(logits, token, speech.tokeniser))
            self._counters.generated_tokens += 1
        sequence.append(token)
        return token

    def _relax(self, sequence: SequenceState, logits: Float32, token: int) -> int:
        """Return the draft's token in place of the LLM's own if that is probable enough."""
        drafted = sequence.draft.next
        if drafted is None or drafted == token:
            return token
        return drafted if sequence.sampler.probability(logits, drafted) >= RELAXED_PROBABILITY else token

    def _count_draft(self, sequence: SequenceState, proposed: int, accepted: int) -> None:
        sequence.drafted += proposed
        sequence.accepted += accepted
        sequence.draft.learn(proposed, accepted)
        if not sequence.transcribing:
            self.gate.record(plain_words(sequence.request.task.instruction), proposed, accepted)
        for place in range(proposed):
            self._counters.drafted[min(place, DRAFT_POSITIONS - 1)] += 1
            self._counters.accepted[min(place, DRAFT_POSITIONS - 1)] += place < accepted
