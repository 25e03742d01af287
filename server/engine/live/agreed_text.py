"""The text of an utterance that is still being spoken, from hypotheses whose words have no times. Pure.

Each hypothesis is the text of the whole utterance so far. A word becomes stable once two hypotheses in a row agree on it and on
all words before it, and another word follows (LocalAgreement, arXiv 2009.11066 and 2307.14743).
"""

from collections.abc import Sequence

from rapidfuzz.distance import Prefix

# How many words a hypothesis may have more or fewer than the one before it in place of the stable ones.
MOST_SHIFTED = 3


class AgreedText:
    """Joins hypotheses of one utterance: `stable + tail` is the text, and `stable` only ever grows, by whole words.

    The stable words were all said before `stable_end_s`, which is the end of the audio of the hypothesis that had them first.
    Text in a script without spaces is one word: all of it is told, and none becomes stable before a space follows.
    """

    def __init__(self, start_s: float) -> None:
        self.stable_end_s = start_s
        self._stable: list[str] = []
        self._tail: list[str] = []
        self._end_s = start_s

    @property
    def stable(self) -> str:
        return " ".join(self._stable)

    @property
    def tail(self) -> str:
        return " ".join([*self._stable, *self._tail])[len(self.stable) :]

    def update(self, text: str, end_s: float) -> bool:
        """Take a hypothesis of the audio up to `end_s`, and return whether the text changed."""
        before = self.stable, self.tail
        tail = self._beyond_stable(text.split())
        agreed = Prefix.similarity(self._tail, tail[:-1])
        self._stable += tail[:agreed]
        self._tail = tail[agreed:]
        if agreed:
            self.stable_end_s = self._end_s
        self._end_s = end_s
        return (self.stable, self.tail) != before

    def _beyond_stable(self, words: Sequence[str]) -> list[str]:
        """Return the words behind the last stable one, which is searched near its place; by its place if it is not there."""
        count = len(self._stable)
        near = [place for place, word in enumerate(words, start=1) if count and word == self._stable[-1]]
        nearest = min(near, key=lambda place: abs(place - count), default=count)
        return list(words[nearest if abs(nearest - count) <= MOST_SHIFTED else count :])
