"""Greedy transcripts by a bundle's speech decoder, without an engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.protocols import EncoderStates, Float32, PrefillRow
from models.speech_decoders.speech_model import LONGEST_TRANSCRIPT, SpeechModel

Propose = Callable[[Sequence[int]], Sequence[int]]
"""Returns tokens that probably follow the written ones."""


@dataclass(frozen=True)
class Written:
    """A greedy transcript of one recording. The mean log-probability is that of the tokens and of the end."""

    tokens: tuple[int, ...]
    text: str
    mean_logprob: float


def write_greedily(speech: SpeechModel, states: EncoderStates, propose: Propose, language: str) -> Written:
    """Write what was said in a language, in one slot, without timestamps, temperatures or bounds on loops.

    Proposals change only how long it takes.
    """
    decoder, tokens = speech.decoder, speech.tokens
    decoder.write_memory(0, states)
    pending = [tokens.start, tokens.languages[language], tokens.transcribe, tokens.no_timestamps]
    position, total, written = 0, 0.0, list[int]()
    while True:
        proposal = propose(written)[: LONGEST_TRANSCRIPT - len(written) - 1]
        fed = decoder.embed([*pending, *proposal])
        (logits,) = decoder.prefill([PrefillRow(0, position, fed, len(proposal) + 1)])
        position += len(pending)
        for row, proposed in zip(logits, [*proposal, None], strict=True):
            scores = row.copy()
            scores[list(tokens.suppressed)] = -np.inf
            if not written:
                scores[list(tokens.suppressed_first)] = -np.inf
            best = int(scores.argmax())
            total += float(log_softmax(scores)[best])
            if best == tokens.end or len(written) == LONGEST_TRANSCRIPT:
                return Written(tuple(written), speech.tokeniser.decode(written), total / (len(written) + 1))
            written.append(best)
            if best != proposed:
                break
            position += 1
        pending = written[-1:]


def log_softmax(logits: Float32) -> Float32:
    shifted = logits - logits.max()
    result: Float32 = shifted - np.log(np.exp(shifted).sum())
    return result
