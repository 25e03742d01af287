"""Sampling: the next token from logits."""

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.protocols import BackendError, Float32
from models.text.tokeniser import Tokeniser
from server.engine.types.events import TokenLogprob
from server.engine.types.options import SamplingOptions

# Enough for the nucleus of most tokens; more are sorted only where these do not reach `top_p`.
FIRST_NUCLEUS_TOKENS = 64
NUCLEUS_GROWTH = 8

Scores = npt.NDArray[np.floating]
Weights = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


class Sampler:
    """Chooses the tokens of one request.

    The randomness of token number i is a function of the seed and i alone. So equal seeds repeat a text whatever else runs, and
    a position that is computed again gets the same token. A draft token is accepted exactly if `choose` returns it, which gives
    the text, and the distribution, of an answer without a draft.
    """

    def __init__(self, options: SamplingOptions) -> None:
        """A request without a seed gets a random one."""
        self._options = options
        self._seed = secrets.randbits(64) if options.seed is None else options.seed % 2**64
        self._penalises = options.repetition_penalty != 1 or options.presence_penalty != 0

    def choose(self, logits: Float32, tokens: Sequence[int]) -> int:
        """Return the token after `tokens`, the answer so far, from logits [vocabulary_size].

        Raises `BackendError` if the logits hold NaN, positive infinity, or nothing finite. The penalties count the answer's
        tokens only: not the instruction, whose words an answer may need, nor the speech, which has no tokens.
        """
        options = self._options
        best = int(logits.argmax())
        # To argmax, NaN is the largest value.
        if not np.isfinite(logits[best]):
            raise BackendError("The logits are not finite.")
        scores: Scores = self._penalised(logits, tokens) if self._penalises and tokens else logits
        if options.temperature == 0:
            return best if scores is logits else int(scores.argmax())
        ids, weights = nucleus(*likeliest(scores, options.top_k, options.temperature), options.top_p)
        cumulative = weights.cumsum()
        # In (0, total], so that the token found always has a weight of its own.
        return int(ids[cumulative.searchsorted(uniform(self._seed, len(tokens)) * cumulative[-1])])

    def logprob(self, logits: Float32, token: int, tokeniser: Tokeniser) -> TokenLogprob:
        """Return the token's log-probability under the model, with as many of the best possible ones as the options ask for."""
        normaliser = log_normaliser(logits)
        best = largest(logits, self._options.logprobs or 0)
        ranked = best[np.argsort(-logits[best], kind="stable")]
        top = [(tokeniser.token_bytes(int(id)), float(logits[id]) - normaliser) for id in ranked if np.isfinite(logits[id])]
        return TokenLogprob(tokeniser.token_bytes(token), float(logits[token]) - normaliser, tuple(top))

    def probability(self, logits: Float32, token: int) -> float:
        """Return the token's probability under the model, before penalties and temperature."""
        return float(np.exp(float(logits[token]) - log_normaliser(logits)))

    def _penalised(self, logits: Float32, tokens: Sequence[int]) -> Scores:
        """Return scores after the repetition penalty (CTRL: divide positive ones, multiply others) and the presence penalty."""
        scores = logits.astype(np.float64)
        seen = np.fromiter(set(tokens), np.int64)
        factor = self._options.repetition_penalty
        values = scores[seen]
        scores[seen] = np.where(values > 0, values / factor, values * factor) - self._options.presence_penalty
        return scores


def uniform(seed: int, position: int) -> float:
    """Return the draw in (0, 1] of one position, by Philox, a generator that counts instead of carrying a state."""
    bits = int(np.random.Philox(key=seed, counter=position).random_raw())
    return ((bits >> 11) + 1) / 2**53


def likeliest(scores: Scores, top_k: int, temperature: float) -> tuple[Ids, Weights]:
    """Return ids, ascending, of the `top_k` best (0: all), and their probabilities relative to the best."""
    ids = largest(scores, top_k or len(scores))
    chosen = (scores if len(ids) == len(scores) else scores[ids]).astype(np.float64)
    with np.errstate(over="ignore"):
        return ids, np.exp((chosen - chosen.max()) / temperature)


def nucleus(ids: Ids, weights: Weights, top_p: float) -> tuple[Ids, Weights]:
    """Return the fewest of the likeliest that together have at least the share `top_p`; of equals, those with lower ids."""
    if top_p >= 1:
        return ids, weights
    wanted, count = top_p * weights.sum(), FIRST_NUCLEUS_TOKENS
    while True:
        candidates = largest(weights, count)
        ranked = candidates[np.argsort(-weights[candidates], kind="stable")]
        shares = weights[ranked].cumsum()
        if shares[-1] >= wanted or count >= len(weights):
            kept = ranked[: int(shares.searchsorted(wanted)) + 1]
            return ids[kept], weights[kept]
        count *= NUCLEUS_GROWTH


def largest(values: Scores, count: int) -> Ids:
    """Return indices, ascending, of the `count` largest values, or all if there are fewer; of equals, the lower indices."""
    if count >= len(values):
        return np.arange(len(values))
    if count == 0:
        return np.empty(0, np.int64)
    threshold = np.partition(values, -count)[-count]
    above, equal = np.flatnonzero(values > threshold), np.flatnonzero(values == threshold)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def log_normaliser(logits: Float32) -> float:
    """Return log(sum(exp(logits))). The exponentials are float32, which changes the result by less than 1e-6."""
    best = logits.max()
    return float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))
