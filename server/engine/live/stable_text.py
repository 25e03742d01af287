"""The text of an utterance that is still being spoken: a stable prefix, and a tail that may change. Pure.

Every hypothesis holds the words of the utterance so far, or of its last seconds. Words become stable once two hypotheses in a row
agree on them (LocalAgreement, arXiv 2009.11066 and 2307.14743) and the audio has gone on for a while, because the next words can
change how the last one is heard. Words are shown at once, but what is shown is replaced only by what two hypotheses agree on:
most hypotheses that differ are corrected by the next one. Words agree where their letters do. A word stays in the case, and with
the punctuation, in which it was shown.
"""

from collections.abc import Sequence

from rapidfuzz.distance import Prefix

from models.text.realignment import letters
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
        # The same words as hypotheses had them: the stable ones, and those behind them in the last one.
        self._settled: list[Word] = []
        self._last: list[Word] = []

    @property
    def words(self) -> list[Word]:
        """The words of the last hypothesis, behind the stable ones that are older, in seconds of the session."""
        return [*self._settled, *self._last]

    @property
    def stable(self) -> str:
        return " ".join(word.text for word in self._stable)

    @property
    def tail(self) -> str:
        return " ".join(word.text for word in (*self._stable, *self._tail))[len(self.stable) :]

    def update(self, words: Sequence[Word], end_s: float) -> bool:
        """Take a hypothesis of the audio up to `end_s`, and return whether the text changed.

        The hypothesis begins at `stable_end_s` at the latest. Its words of the last `GUESSED_S` are left out.
        """
        before = self.stable, self.tail
        new = self._beyond_stable([word for word in words if word.end_s <= end_s - GUESSED_S or _is_text(word)])
        self._tail = self._shown(new)
        agreed = self._agreed(new, end_s)
        self._stable += self._tail[:agreed]
        self._settled += new[:agreed]
        self._tail, self._last = self._tail[agreed:], new[agreed:]
        if agreed:
            self.stable_end_s = self._stable[-1].end_s
        return (self.stable, self.tail) != before

    def _beyond_stable(self, words: Sequence[Word]) -> list[Word]:
        """Return the words after the last stable one, or after its time if the hypothesis does not have it."""
        if not self._stable:
            return list(words)
        last = self._stable[-1]
        again = [place for place, word in enumerate(words) if _agree(word, last) and abs(word.end_s - last.end_s) <= SAME_WORD_S]
        return list(words[again[-1] + 1 :]) if again else [word for word in words if word.middle_s > last.end_s]

    def _shown(self, new: Sequence[Word]) -> list[Word]:
        """Return what is shown of a new hypothesis: the words that are shown already, and what follows them or replaces them."""
        shown = self._tail
        same = count_same(shown, new)
        kept = [Word(old.text, word.start_s, word.end_s) for old, word in zip(shown[:same], new, strict=False)]
        rest, following = shown[same:], new[same:]
        if not rest or not following:
            return [*kept, *rest, *following]
        has_grown = len(rest) == 1 and letters(following[0].text).startswith(letters(rest[0].text))
        is_agreed = count_same(self._last[same : same + 1], following) > 0
        is_text = _is_text(rest[0]) or _is_text(following[0])
        return [*kept, *(following if has_grown or is_agreed or is_text else rest)]

    def _agreed(self, new: Sequence[Word], end_s: float) -> int:
        """Return how many words of the new tail become stable: those that the last tail began with, too, and one follows."""
        settled = next((place for place, word in enumerate(new) if word.end_s > end_s - SETTLED_S), len(new))
        return min(count_same(self._last, new[:-1]), settled)


def count_same(old: Sequence[Word], new: Sequence[Word]) -> int:
    """Return with how many words that agree both begin."""
    return Prefix.similarity(*([letters(word.text) for word in words] for words in (old, new)))


def _agree(a: Word, b: Word) -> bool:
    return letters(a.text) == letters(b.text)


def _is_text(word: Word) -> bool:
    return word.end_s - word.start_s > LONGEST_WORD_S
