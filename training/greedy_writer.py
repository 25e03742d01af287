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
    """A greedy transcript of one recording, with what is read from the logits of its first position.

    The mean log-probability is that of the tokens and of the end.
    """

    tokens: tuple[int, ...]
    text: str
    mean_logprob: float
    language: str | None
    language_probability: float
    no_speech_probability: float


def propose_nothing(_written: Sequence[int]) -> Sequence[int]:
    """Return no tokens."""
    return ()


class GreedyWriter:
    """Writes transcripts with one slot of a speech decoder: no timestamps, temperatures or bounds on loops."""

    def __init__(self, speech: SpeechModel) -> None:
        self.speech = speech

    def write(self, states: EncoderStates, propose: Propose = propose_nothing, language: str = "en") -> Written:
        """Write what was said in a language; proposals change only how long it takes."""
        decoder, tokens = self.speech.decoder, self.speech.tokens
        decoder.write_memory(0, states)
        pending = self._control(language)
        position, total, written, first = 0, 0.0, list[int](), None
        while True:
            proposal = propose(written)[: LONGEST_TRANSCRIPT - len(written) - 1]
            fed = [*pending, *proposal]
            wanted = len(fed) if first is None else len(proposal) + 1
            (logits,) = decoder.prefill([PrefillRow(0, position, decoder.embed(fed), wanted)])
            first = logits[0] if first is None else first
            position += len(pending)
            for row, proposed in zip(logits[-len(proposal) - 1 :], [*proposal, None], strict=True):
                scores = row.copy()
                scores[list(tokens.suppressed)] = -np.inf
                if not written:
                    scores[list(tokens.suppressed_first)] = -np.inf
                best = int(scores.argmax())
                total += float(log_softmax(scores)[best])
                if best == tokens.end or len(written) == LONGEST_TRANSCRIPT:
                    return self._describe(written, total, first)
                written.append(best)
                if best != proposed:
                    break
                position += 1
            pending = written[-1:]

    def choose(self, states: EncoderStates, text: Sequence[int]) -> list[int]:
        """Return the best token behind each of those of an English text, the control tokens first."""
        decoder = self.speech.decoder
        decoder.write_memory(0, states)
        (logits,) = decoder.prefill([PrefillRow(0, 0, decoder.embed([*self._control("en"), *text]), len(text) + 1)])
        rows = logits.copy()
        rows[:, list(self.speech.tokens.suppressed)] = -np.inf
        return [int(best) for best in rows.argmax(-1)]

    def _control(self, language: str) -> list[int]:
        tokens = self.speech.tokens
        return [tokens.start, tokens.languages[language], tokens.transcribe, tokens.no_timestamps]

    def _describe(self, written: Sequence[int], total: float, first: Float32) -> Written:
        tokens = self.speech.tokens
        ids = np.array(list(tokens.languages.values()))
        probabilities = np.exp(log_softmax(first[ids]))
        return Written(
            tuple(written),
            self.speech.tokeniser.decode(written),
            total / (len(written) + 1),
            self.speech.language_of(int(ids[probabilities.argmax()])),
            float(probabilities.max()),
            float(np.exp(log_softmax(first)[tokens.no_speech])),
        )


def log_softmax(logits: Float32) -> Float32:
    shifted = logits - logits.max()
    result: Float32 = shifted - np.log(np.exp(shifted).sum())
    return result
