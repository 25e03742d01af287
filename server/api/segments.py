"""The words of a transcript in segments that are read at a glance: sentences, or parts of them, as subtitles show them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from server.engine.types.events import Word

LINE_CHARACTERS = 42
LONGEST_S = 7.0
PAUSE_S = 0.6
SENTENCE_MARKS = frozenset(".!?…")
CLAUSE_MARKS = frozenset(",;:")


@dataclass(frozen=True)
class Segment:
    """Some words in a row, joined by spaces, from where the first one begins to where the last one ends."""

    text: str
    start_s: float
    end_s: float


def segments(words: Sequence[Word]) -> tuple[Segment, ...]:
    """The words in segments, in order, every word in one of them.

    A segment ends with its sentence and before a pause. It is shown in two lines of `LINE_CHARACTERS` and lasts no longer than
    `LONGEST_S`, if it is not a single word that does.
    """
    return tuple(
        Segment(joined(part), part[0].start_s, part[-1].end_s) for sentence in _sentences(words) for part in _parts(sentence)
    )


def lines(text: str) -> list[str]:
    """The text in one line or, where it is longer than one, in two of about the same length."""
    spaces = [place for place, character in enumerate(text) if character == " "]
    if len(text) <= LINE_CHARACTERS or not spaces:
        return [text]
    middle = min(spaces, key=lambda place: max(place, len(text) - place - 1))
    return [text[:middle], text[middle + 1 :]]


def joined(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _ends_with(word: Word, marks: frozenset[str]) -> bool:
    """Whether one of the marks is behind the word's last letter; quotation marks and brackets may follow it."""
    letters_end = len(re.sub(r"\W+$", "", word.text))
    return not marks.isdisjoint(word.text[letters_end:])


def _sentences(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    cuts = [
        place
        for place, (before, after) in enumerate(pairwise(words), start=1)
        if _ends_with(before, SENTENCE_MARKS) or after.start_s - before.end_s > PAUSE_S
    ]
    for start, end in pairwise([0, *cuts, len(words)]):
        if start < end:
            yield words[start:end]


def _parts(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """Parts that fit, cut after clauses and in pauses rather than elsewhere, but not near an end."""
    lasts_s = words[-1].end_s - words[0].start_s
    fits = lasts_s <= LONGEST_S and all(len(line) <= LINE_CHARACTERS for line in lines(joined(words)))
    if len(words) == 1 or fits:
        yield words
        return
    ends = list(accumulate(len(word.text) + 1 for word in words))
    characters = ends[-1]

    def merit(place: int) -> tuple[bool, bool, float, int]:
        before, after = words[place - 1], words[place]
        shorter = min(ends[place - 1], characters - ends[place - 1])
        pause_s = round(after.start_s - before.end_s, 1)
        return 4 * shorter >= characters, _ends_with(before, CLAUSE_MARKS), pause_s, shorter

    place = max(range(1, len(words)), key=merit)
    yield from _parts(words[:place])
    yield from _parts(words[place:])
