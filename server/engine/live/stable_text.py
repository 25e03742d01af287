"""The text of an utterance that is still being spoken: a stable prefix, and a tail that may change. Pure.

Every hypothesis holds the words of the utterance so far, or of its last seconds. Words become stable once two hypotheses in a row
agree on them (LocalAgreement, arXiv 2009.11066 and 2307.14743) and the audio has gone on for a while, because the next words can
change how the last one is heard.
"""

from collections.abc import Sequence

from server.engine.runner.heard_words import middle_s
from server.engine.types.events import Word

# The audio that has to follow a word before it may become stable.
SETTLED_S = 0.5
# Words of the last moments are guesses, because the audio may be cut off within one.
GUESSED_S = 0.16
# A longer word is a text in a script without spaces, such as Chinese: it is told, and stable only when another one follows.
LONGEST_WORD_S = 1.5
# How far apart two hypotheses of overlapping audio may put the end of the same word.
SAME_WORD_S = 0.24


class StableText:
    """Joins hypotheses of one utterance: `stable + tail` is the text, and `stable` only ever grows, by whole words."""

    def __init__(self, start_s: float) -> None:
        self.stable_end_s = start_s
        self._stable: list[Word] = []
        self._tail: list[Word] = []

    @property
    def words(self) -> list[Word]:
        """All words, in seconds of the session."""
        return [*self._stable, *self._tail]

    @property
    def stable(self) -> str:
        return " ".join(word.text for word in self._stable)

    @property
    def tail(self) -> str:
        return " ".join(word.text for word in self.words)[len(self.stable) :]

    def update(self, heard: Sequence[Word], end_s: float) -> bool:
        """Take a hypothesis of the audio up to `end_s`, and return whether the text changed.

        The hypothesis begins at `stable_end_s` at the latest. Its words of the last `GUESSED_S` are left out.
        """
        before = self.stable, self.tail
        tail = self._beyond_stable([word for word in heard if word.end_s <= end_s - GUESSED_S or _is_text(word)])
        agreed = self._agreed(tail, end_s)
        self._stable += tail[:agreed]
        self._tail = tail[agreed:]
        if agreed:
            self.stable_end_s = self._stable[-1].end_s
        return (self.stable, self.tail) != before

    def _beyond_stable(self, heard: Sequence[Word]) -> list[Word]:
        """Return the words after the last stable one, or after its time if the hypothesis does not have it."""
        if not self._stable:
            return list(heard)
        last = self._stable[-1]
        again = [
            place for place, word in enumerate(heard) if word.text == last.text and abs(word.end_s - last.end_s) <= SAME_WORD_S
        ]
        return list(heard[again[-1] + 1 :]) if again else [word for word in heard if middle_s(word) > last.end_s]

    def _agreed(self, tail: Sequence[Word], end_s: float) -> int:
        """Return how many words of the new tail become stable: those that the last tail began with, too, and one follows."""
        agreed = 0
        for old, new in zip(self._tail, tail[:-1], strict=False):
            if old.text != new.text or new.end_s > end_s - SETTLED_S:
                break
            agreed += 1
        return agreed


def _is_text(word: Word) -> bool:
    return word.end_s - word.start_s > LONGEST_WORD_S
