"""The benchmark of long audio: words at the seams, what a second of a session costs, and what is reported."""

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.clients.stream import Arrival, Script, StreamRun
from loadtest.long_audio.report import markdown
from loadtest.long_audio.session import stretches
from loadtest.long_audio.text import add_up, compare
from loadtest.support.footprint import Reading

PARTS = ["One two three.", "Four five six.", "Seven eight nine."]
ALL = " ".join(PARTS)


def test_text_that_is_all_there() -> None:
    report = compare(PARTS, ALL.upper())
    assert (report.words, report.seams, report.edge_words) == (9, 2, 6)
    assert (report.word_error_rate, report.lost, report.doubled, report.elsewhere_lost_share) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "lost", "elsewhere", "doubled"),
    [
        ("one two four five six seven eight nine", 1, 0, 0),
        ("one two three five six seven eight nine", 1, 0, 0),
        ("one two five six seven eight nine", 2, 0, 0),
        ("one three four five six seven eight nine", 0, 1 / 3, 0),
        ("one two three three four five six seven eight nine", 0, 0, 1),
        ("one two three four four five six seven eight nine", 0, 0, 1),
        ("one two three two three four five six seven eight nine", 0, 0, 2),
        ("one two three well four five six seven eight nine", 0, 0, 0),
        ("one two two three four five six seven eight nine", 0, 0, 0),
        ("one two tree for five six seven eight nine", 0, 0, 0),
        ("", 6, 1, 0),
    ],
)
def test_words_lost_and_doubled_at_the_seams(text: str, lost: int, elsewhere: float, doubled: int) -> None:
    report = compare(PARTS, text)
    assert (report.lost, report.doubled) == (lost, doubled)
    assert report.elsewhere_lost_share == pytest.approx(elsewhere)


WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=5), WORDS)
def test_no_more_is_lost_than_there_is(parts: list[str], text: str) -> None:
    report = compare(parts, text)
    assert 0 <= report.lost <= report.edge_words <= report.words
    assert 0 <= report.elsewhere_lost_share <= 1
    assert report.doubled <= len(text.split())
    assert compare(parts, " ".join(parts)).word_error_rate == 0


def test_parts_without_words_are_no_parts() -> None:
    assert compare(["one", "...", "two"], "one two").seams == 1
    with pytest.raises(ValueError, match="no words"):
        compare(["...", ""], "one")


def test_answers_that_were_given_one_by_one() -> None:
    report = add_up([compare(["one two three four"], "one two four"), compare(["five six"], "six six")])
    assert (report.words, report.seams, report.edge_words, report.lost) == (6, 0, 4, 0)
    assert report.word_error_rate == pytest.approx(2 / 6)
    assert report.elsewhere_lost_share == pytest.approx(1 / 2)


def session(audio_s: float, times_real_time: float) -> StreamRun:
    """A session that began at second 100 of the clock and got an event for each second of its audio."""
    events = [Arrival(end_s / times_real_time, {"type": "final", "end_s": float(end_s)}) for end_s in range(1, int(audio_s) + 1)]
    return StreamRun(Script(bytes(round(32_000 * audio_s))), origin_s=100.0, arrivals=events)


def test_a_second_of_audio_that_costs_ever_more() -> None:
    """Ten times real time; a tenth of a CPU second for each of audio at first, three tenths from the middle on."""
    clock_s = range(100, 121)
    cpu_s = [(moment - 100) * 1.0 + max(0, moment - 110) * 2.0 for moment in clock_s]
    readings = [Reading(float(moment), {"server": float(moment)}, used_s) for moment, used_s in zip(clock_s, cpu_s, strict=True)]
    first, second = stretches(session(200, 10), readings, window_s=100)
    assert (first.start_s, first.end_s) == (0, 90)
    assert (second.start_s, second.end_s) == (100, 190)
    assert first.cpu_s_per_audio_s == pytest.approx(0.1)
    assert second.cpu_s_per_audio_s == pytest.approx(0.3)
    assert (first.anonymous_mib, second.anonymous_mib) == ({"server": 104.5}, {"server": 114.5})


def test_a_session_that_nobody_watched_has_no_stretches() -> None:
    assert stretches(session(200, 10), [Reading(100.0, {}, 0.0)], window_s=100) == []


def result(**changes: Any) -> dict[str, Any]:
    words = asdict(compare(PARTS, ALL)) | {"lost_share": 0.0, "recordings": 3}
    memory = {"memory_before_mib": 800, "peak_mib": 900, "memory_after_mib": 850, "peak_by_process_mib": {"server": 900}}
    times = {"wall_s": 60.0, "rtfx": 30.0, "cpu_s_per_audio_s": 0.05}
    stretch = {"start_s": 0.0, "end_s": 300.0, "cpu_s_per_audio_s": 0.07, "anonymous_mib": {"server": 100.0}}
    live = {"minutes": 60.0, "utterances": 9, "partials": 8, "peak_mib": 900, "stretches": [stretch], "complaints": []}
    machine = {"date": "2026-01-01", "git_revision": "abc", "machine": "a machine", "python": "3", "versions": {}}
    return {
        **machine,
        "load_average_before": "0.1",
        "other_cpu_share": 0.0,
        "recordings": "tests/clips",
        "alone": words,
        "files": [{"minutes": 30.0, "file_mib": 20, **times, **memory, **words}],
        "live": {**live, **times, **words},
        **changes,
    }


def test_the_report() -> None:
    text = markdown(result())
    assert "| one file of 30 min | 3 | 9 | 0.0 % | 2 | 0 of 6 (0.0 %) | 0.0 % | 0 |" in text
    assert "| 30 min | 20 | 60.0 | 30.0 | 0.05 | 800 | 900 | 850 |" in text
    assert "| 0.0 to 5.0 | 0.07 | 100.0 |" in text
    assert "broke" not in text


def test_the_report_of_less() -> None:
    text = markdown(result(files=[], live=None))
    assert "each recording alone" in text
    assert "Files" not in text
    assert "A live session" not in text
    live = result()["live"] | {"complaints": ["the socket was closed with 1011, not 1000"]}
    assert "**It broke the protocol:** the socket was closed with 1011" in markdown(result(live=live))
