"""CTC over a vocabulary with a factorised blank, and its greedy decoding."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.ctc import collapse


@dataclass(frozen=True)
class Sample:
    """A part of the vocabulary that stands for the whole: every target of the batch and random other tokens.

    `tokens` [n]; `correction` [n] is added to logits so that the sampled normaliser estimates the full one.
    """

    tokens: Tensor
    correction: Tensor


def sample_vocabulary(targets: Tensor, vocabulary_size: int, negatives: int, generator: torch.Generator) -> Sample:
    """Importance-corrected sample (Bengio and Senecal 2008): a tenth of the vocabulary costs a tenth of the time.

    A vocabulary no larger than the sample is taken whole.
    """
    wanted = torch.unique(targets)
    others = torch.ones(vocabulary_size, dtype=torch.bool)
    others[wanted] = False
    pool = others.nonzero()[:, 0]
    if len(pool) <= negatives:
        return Sample(torch.cat([wanted, pool]), torch.zeros(vocabulary_size))
    chosen = pool[torch.randint(len(pool), (negatives,), generator=generator)]
    correction = torch.full((len(wanted) + negatives,), (len(pool) / negatives)).log()
    correction[: len(wanted)] = 0
    return Sample(torch.cat([wanted, chosen]), correction)


def ctc_loss(
    queries: Tensor, blank_logits: Tensor, frames: Tensor, table: Tensor, sample: Sample, targets: Tensor, target_lengths: Tensor
) -> Tensor:
    """Return the mean over the batch of the loss per target token.

    queries [batch, frames, embedding], blank_logits [batch, frames], targets [batch, longest] of token ids,
    `table` the whole embedding table [vocabulary, embedding] in the dtype of the product.
    """
    logits = (queries.to(table.dtype) @ table[sample.tokens].T).float() + sample.correction
    tokens = functional.log_softmax(logits, -1) + functional.logsigmoid(-blank_logits)[..., None]
    log_probabilities = torch.cat([functional.logsigmoid(blank_logits)[..., None], tokens], -1)
    position = torch.zeros(len(table), dtype=torch.long)
    wanted = torch.unique(targets)
    position[wanted] = torch.arange(1, len(wanted) + 1)
    loss = functional.ctc_loss(
        log_probabilities.transpose(0, 1),
        position[targets],
        frames,
        target_lengths,
        blank=0,
        reduction="none",
        zero_infinity=True,
    )
    return (loss / target_lengths).mean()


@torch.no_grad()
def greedy_tokens(queries: Tensor, blank_logits: Tensor, table: Tensor) -> list[int]:
    """Return the draft of one utterance: the best token of each frame that is not blank, runs merged.

    queries [frames, embedding], blank_logits [frames].
    """
    speech = blank_logits < 0
    best = torch.full(speech.shape, -1, dtype=torch.long)
    best[speech] = (queries[speech].to(table.dtype) @ table.T).argmax(-1)
    return list(collapse(best.numpy()))
