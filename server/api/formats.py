"""The formats of a transcript besides JSON: segments as subtitles show them, SubRip (SRT) and WebVTT."""

import html
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Literal

from server.engine.types.events import Done, Segment, Word

ReplyFormat = Literal["json", "text", "srt", "vtt"]

SUBTITLES: tuple[ReplyFormat, ...] = ("srt", "vtt")
MEDIA_TYPES: dict[ReplyFormat, str] = {
    "json": "application/json",
    "text": "text/plain",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
}

LINE_CHARACTERS = 42
LONGEST_S = 7.0
PAUSE_S = 0.6
SENTENCE_MARKS = frozenset(".!?…")
CLAUSE_MARKS = frozenset(",;:")


def answer_segments(done: Done, audio_s: float, utterances: Sequence[Segment] = ()) -> tuple[Segment, ...]:
    """Return an answer in segments: of its words, where their times are known, else its utterances, or all of it as one."""
    if done.words is not None:
        return segments(done.words)
    return tuple(utterances) or ((Segment(done.text, 0.0, audio_s),) if done.text else ())


def segments(words: Sequence[Word]) -> tuple[Segment, ...]:
    """Return the words in segments, in order, each word in exactly one.

    A segment ends with its sentence and before a pause. It fits two lines of `LINE_CHARACTERS` and lasts at most `LONGEST_S`,
    unless it is a single word.
    """
    return tuple(
        Segment(_joined(part), part[0].start_s, part[-1].end_s) for sentence in _sentences(words) for part in _parts(sentence)
    )


def lines(text: str) -> list[str]:
    """Return the text as one line or, where it is longer than a line, as two of about the same length."""
    spaces = [place for place, character in enumerate(text) if character == " "]
    if len(text) <= LINE_CHARACTERS or not spaces:
        return [text]
    middle = min(spaces, key=lambda place: max(place, len(text) - place - 1))
    return [text[:middle], text[middle + 1 :]]


def srt(segments: Sequence[Segment]) -> str:
    """Return a SubRip file."""
    return "".join(
        f"{number}\n{_clock(start_ms, ',')} --> {_clock(end_ms, ',')}\n{text}\n\n"
        for number, (start_ms, end_ms, text) in enumerate(_cues(segments), start=1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    """Return a WebVTT file; `&`, `<` and `>` in the text are escaped."""
    cues = (
        f"{_clock(start_ms, '.')} --> {_clock(end_ms, '.')}\n{html.escape(text, quote=False)}\n\n"
        for start_ms, end_ms, text in _cues(segments)
    )
    return "WEBVTT\n\n" + "".join(cues)


def _joined(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _ends_with(word: Word, marks: frozenset[str]) -> bool:
    """Return whether one of the marks follows the word's last letter, before any quotation marks and brackets."""
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
    """Yield parts that fit a segment, cut after clauses and in pauses rather than elsewhere, but not near an end."""
    lasts_s = words[-1].end_s - words[0].start_s
    fits = lasts_s <= LONGEST_S and all(len(line) <= LINE_CHARACTERS for line in lines(_joined(words)))
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


def _cues(segments: Sequence[Segment]) -> Iterator[tuple[int, int, str]]:
    """Yield start and end in milliseconds and the text in lines; each cue has a length and starts after the last one's end."""
    end_ms = 0
    for segment in segments:
        start_ms = max(round(segment.start_s * 1000), end_ms)
        end_ms = max(round(segment.end_s * 1000), start_ms + 1)
        yield start_ms, end_ms, "\n".join(lines(segment.text))


def _clock(time_ms: int, point: str) -> str:
    seconds, milliseconds = divmod(time_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"
