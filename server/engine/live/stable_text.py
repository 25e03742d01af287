"""The text of an utterance that is still being spoken: a stable prefix, and a tail that may change. Pure.

Every hypothesis is a CTC draft of the utterance so far, or of its last seconds. Words become stable once two hypotheses in a row
agree on them (LocalAgreement, arXiv 2009.11066 and 2307.14743) and the audio has gone on for a while, because the next words can
change how the last one is heard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import dropwhile

from models.ctc import find_runs
from models.protocols import Int64

# The audio that has to follow a word before it may become stable.
SETTLED_S = 0.5
# The last frames of a hypothesis are guesses, because the audio may be cut off within a word.
GUESSED_S = 0.16
# How far apart two hypotheses of overlapping audio may put the same token.
SAME_TOKEN_S = 0.24


@dataclass(frozen=True)
class HeardToken:
    """A token of a CTC draft and when its last frame ends, in seconds of the session."""

    token: int
    end_s: float


def heard_tokens(best_token: Int64 | Sequence[int], start_s: float, frame_s: float) -> list[HeardToken]:
    """Return the tokens of a draft [frames] that begins at `start_s`."""
    return [HeardToken(run.token, start_s + (run.last + 1) * frame_s) for run in find_runs(best_token)]


class StableText:
    """Joins hypotheses of one utterance: `stable + tail` is the text, and `stable` only ever grows, by whole words."""

    def __init__(self, start_s: float, decode: Callable[[Sequence[int]], str]) -> None:
        """`decode` returns the text of tokens, in which every word begins with a space."""
        self.stable_end_s = start_s
        self._decode = decode
        self._stable: list[HeardToken] = []
        self._tail: list[HeardToken] = []

    @property
    def stable(self) -> str:
        return self._text(self._stable)

    @property
    def tail(self) -> str:
        return self._text([*self._stable, *self._tail])[len(self.stable) :]

    def update(self, heard: Sequence[HeardToken], end_s: float) -> bool:
        """Take a hypothesis of the audio up to `end_s`, and return whether the text changed.

        The hypothesis begins at `stable_end_s` at the latest. Its tokens of the last `GUESSED_S` are left out.
        """
        before = len(self._stable), [each.token for each in self._tail]
        tail = self._beyond_stable([each for each in heard if each.end_s <= end_s - GUESSED_S])
        agreed = self._agreed(tail, end_s)
        self._stable += tail[:agreed]
        self._tail = tail[agreed:]
        if agreed:
            self.stable_end_s = self._stable[-1].end_s
        return (len(self._stable), [each.token for each in self._tail]) != before

    def _text(self, tokens: Sequence[HeardToken]) -> str:
        return self._decode([each.token for each in tokens]).lstrip()

    def _beyond_stable(self, heard: Sequence[HeardToken]) -> list[HeardToken]:
        """Return the tokens after the last stable one, or after its time if the hypothesis does not have it.

        Tokens that would continue a stable word are left out: they belong to another reading of that word.
        """
        if not self._stable:
            return list(heard)
        last = self._stable[-1]
        again = [
            index for index, each in enumerate(heard) if each.token == last.token and abs(each.end_s - last.end_s) <= SAME_TOKEN_S
        ]
        beyond = heard[again[-1] + 1 :] if again else [each for each in heard if each.end_s > last.end_s]
        return list(dropwhile(lambda each: self._decode([each.token])[:1].isalnum(), beyond))

    def _agreed(self, tail: Sequence[HeardToken], end_s: float) -> int:
        """Return how many tokens of the new tail become stable: whole words that the last tail began with, too."""
        agreed = 0
        for index, (old, new) in enumerate(zip(self._tail, tail, strict=False)):
            if old.token != new.token or new.end_s > end_s - SETTLED_S:
                break
            if index + 1 < len(tail) and self._decode([tail[index + 1].token]).startswith(" "):
                agreed = index + 1
        return agreed
