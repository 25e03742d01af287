"""SRT and VTT files read back as the segments they were written from, for any text."""

import html
import re

from hypothesis import given
from hypothesis import strategies as st

from server.api.formats import srt, vtt
from server.engine.types.events import Segment

SEGMENTS = [
    Segment("The beach was empty.", 0.0, 3.32),
    Segment("Tom & Jerry <b>ran</b> --> off, as fast as they could run.", 3599.9996, 3661.5),
]
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=30), min_size=1, max_size=9)
CLOCK = r"(\d{2,}):([0-5]\d):([0-5]\d)[,.](\d{3})"


@st.composite
def timed_segments(draw: st.DrawFn) -> list[Segment]:
    """Return segments in order, some without length, up to a hundred hours on."""
    found, time_s = [], draw(st.floats(0, 360_000))
    for words, gap_s, length_s in draw(st.lists(st.tuples(TEXTS, st.floats(0, 5), st.just(0.0) | st.floats(0, 7)), max_size=12)):
        found.append(Segment(" ".join(words), time_s + gap_s, time_s + gap_s + length_s))
        time_s += gap_s + length_s
    return found


def milliseconds(clock: str) -> int:
    match = re.fullmatch(CLOCK, clock)
    assert match, clock
    hours, minutes, seconds, rest = map(int, match.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def cues(blocks: list[str]) -> list[tuple[int, int, str]]:
    """Return start, end and text of each cue."""
    found = []
    for block in blocks:
        times, *shown = block.split("\n")
        start, end = times.split(" --> ")
        found.append((milliseconds(start), milliseconds(end), " ".join(shown)))
    return found


def read_srt(text: str) -> list[tuple[int, int, str]]:
    blocks = text.split("\n\n")[:-1]
    numbers = [block.partition("\n")[0] for block in blocks]
    assert numbers == [str(number) for number in range(1, len(blocks) + 1)]
    return cues([block.partition("\n")[2] for block in blocks])


def read_vtt(text: str) -> list[tuple[int, int, str]]:
    head, *blocks = text.split("\n\n")[:-1]
    assert head == "WEBVTT"
    assert not re.search(r"[<>]", "".join(block.partition("\n")[2] for block in blocks))
    return [(start, end, html.unescape(shown)) for start, end, shown in cues(blocks)]


def test_srt_is_as_players_expect_it() -> None:
    assert srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:03,320\nThe beach was empty.\n\n"
        "2\n01:00:00,000 --> 01:01:01,500\nTom & Jerry <b>ran</b> -->\noff, as fast as they could run.\n\n"
    )


def test_vtt_is_as_browsers_expect_it() -> None:
    assert vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:03.320\nThe beach was empty.\n\n"
        "01:00:00.000 --> 01:01:01.500\nTom &amp; Jerry &lt;b&gt;ran&lt;/b&gt; --&gt;\noff, as fast as they could run.\n\n"
    )


@given(timed_segments())
def test_srt_reads_back(segments: list[Segment]) -> None:
    check(read_srt(srt(segments)), segments)


@given(timed_segments())
def test_vtt_reads_back(segments: list[Segment]) -> None:
    check(read_vtt(vtt(segments)), segments)


def check(found: list[tuple[int, int, str]], segments: list[Segment]) -> None:
    """Assert the same texts at the same times, apart from the least length of a cue."""
    assert [shown for _, _, shown in found] == [segment.text for segment in segments]
    end_before = 0
    for (start, end, _), segment in zip(found, segments, strict=True):
        assert end_before <= start < end
        end_before = end
        assert abs(start - segment.start_s * 1000) <= len(segments)
        assert abs(end - segment.end_s * 1000) <= len(segments) + 1


def test_nothing_said_is_a_file_without_cues() -> None:
    assert srt([]) == ""
    assert vtt([]) == "WEBVTT\n\n"
