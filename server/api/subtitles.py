"""Segments as subtitles: SubRip (SRT) and WebVTT."""

import html
from collections.abc import Iterator, Sequence

from server.api.segments import Segment, lines


def srt(segments: Sequence[Segment]) -> str:
    """A SubRip file."""
    return "".join(
        f"{number}\n{_clock(start_ms, ',')} --> {_clock(end_ms, ',')}\n{text}\n\n"
        for number, (start_ms, end_ms, text) in enumerate(_cues(segments), start=1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    """A WebVTT file; `&`, `<` and `>` in the text are escaped."""
    cues = (
        f"{_clock(start_ms, '.')} --> {_clock(end_ms, '.')}\n{html.escape(text, quote=False)}\n\n"
        for start_ms, end_ms, text in _cues(segments)
    )
    return "WEBVTT\n\n" + "".join(cues)


def _cues(segments: Sequence[Segment]) -> Iterator[tuple[int, int, str]]:
    """Beginning and end in milliseconds, and the text in lines; none is without length or begins before the last one's end."""
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
