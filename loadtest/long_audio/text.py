"""The text of a long recording against the words that it was joined from: errors, and what was lost or doubled at the seams."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from loadtest.support.words import words_of


@dataclass(frozen=True)
class SeamReport:
    """`edge_words` are the first and the last word of each part. Of them `lost` have nothing in the text; `doubled` is how many
    words the text has at a seam that are there already next to them. `elsewhere_lost_share` is the share of all other words
    that have nothing in the text, as the model's own habit to compare with."""

    words: int
    word_error_rate: float
    seams: int
    edge_words: int
    lost: int
    doubled: int
    elsewhere_lost_share: float

    @property
    def lost_share(self) -> float:
        return self.lost / self.edge_words


def compare(parts: Sequence[str], text: str) -> SeamReport:
    """Compare the text of some parts in a row with these. Raises `ValueError` where the parts have no words."""
    spoken = [words for part in parts if (words := words_of(part))]
    reference = [word for words in spoken for word in words]
    given = words_of(text)
    if not reference:
        raise ValueError("the parts have no words")
    aligned = jiwer.process_words(" ".join(reference), " ".join(given))
    lost: set[int] = set()
    doubled = 0
    seams, edges = _seams(spoken)
    for chunk in aligned.alignments[0]:
        if chunk.type == "delete":
            lost.update(range(chunk.ref_start_idx, chunk.ref_end_idx))
        elif chunk.type == "insert" and seams & _places(given, chunk.hyp_start_idx, chunk.hyp_end_idx, chunk.ref_start_idx):
            doubled += chunk.hyp_end_idx - chunk.hyp_start_idx
    inside = len(reference) - len(edges)
    return SeamReport(
        words=len(reference),
        word_error_rate=float(aligned.wer),
        seams=len(seams),
        edge_words=len(edges),
        lost=len(lost & edges),
        doubled=doubled,
        elsewhere_lost_share=len(lost - edges) / inside if inside else 0.0,
    )


def _seams(spoken: Sequence[Sequence[str]]) -> tuple[set[int], set[int]]:
    """Return the places of the words that begin a part other than the first, and of all words at the edge of a part."""
    seams, edges, at = set(), set(), 0
    for words in spoken:
        edges |= {at, at + len(words) - 1}
        at += len(words)
        seams.add(at)
    return seams - {at}, edges


def _places(words: Sequence[str], start: int, end: int, place: int) -> set[int]:
    """Before which words of the reference the words from `start` to `end` may be the ones too many: of two equal pieces in a row
    an alignment takes either. None, where they repeat nothing."""
    count, piece = end - start, list(words[start:end])
    follows = piece == list(words[max(0, start - count) : start])
    precedes = piece == list(words[end : end + count])
    return (
        {place, *([place - count] if follows else []), *([place + count] if precedes else [])} if follows or precedes else set()
    )


def add_up(reports: Sequence[SeamReport]) -> SeamReport:
    """Return one report about texts that were given one by one."""
    words = sum(each.words for each in reports)
    edge_words = sum(each.edge_words for each in reports)
    inside = words - edge_words
    return SeamReport(
        words=words,
        word_error_rate=sum(each.word_error_rate * each.words for each in reports) / words,
        seams=sum(each.seams for each in reports),
        edge_words=edge_words,
        lost=sum(each.lost for each in reports),
        doubled=sum(each.doubled for each in reports),
        elsewhere_lost_share=sum(each.elsewhere_lost_share * (each.words - each.edge_words) for each in reports) / inside
        if inside
        else 0.0,
    )
