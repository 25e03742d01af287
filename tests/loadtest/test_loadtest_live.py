"""The benchmark of live audio: levels against a scripted engine behind the real edge, what voids a run, and what is reported."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loadtest.clients.load import LoadResult, Question
from loadtest.clients.server import make_body
from loadtest.clients.stream import Arrival, Script, StreamRun, run_stream
from loadtest.live.__main__ import judge
from loadtest.live.audio import StreamAudio
from loadtest.live.checks import complaints
from loadtest.live.figures import Spoken, final_text
from loadtest.live.levels import Level, LevelResult, run_level
from loadtest.live.report import describe_level, markdown
from tests.support.clients.live_server import LiveServer, audio_file, scripted_engine_server, tone

RATE_HZ = 16_000
TEXT = "Transcribe the speech to text. 0 Transcribe the speech to text. 1"
AUDIO = StreamAudio((tone(1.4, RATE_HZ) * 32767).astype(np.int16), (Spoken("a", "", 0.0, 0.9), Spoken("b", "", 1.1, 1.4)))
"""The scripted engine makes an utterance of every second of it."""


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with scripted_engine_server() as (_, live):
        yield live


def test_the_servers_own_sessions_keep_to_the_protocol(server: LiveServer) -> None:
    messages = [(0.5, {"type": "flush", "id": "a"}), (1.2, {"type": "update", "instruction": "Say it."})]
    run = run_stream(server.url, Script(AUDIO.pcm, options={"words": True}, speed=0, messages=messages))
    assert complaints(run) == []
    assert [arrival.type for arrival in run.of_type("final", "flushed", "ended")] == ["final", "flushed", "final", "ended"]


def test_a_level_of_streams_with_files_beside_them(server: LiveServer) -> None:
    question = Question(make_body(audio_file(tone(0.5, RATE_HZ), RATE_HZ, "WAV")), 0.5, "hello world")
    result = run_level(server.url, 1, Level(2, True, 300), [AUDIO, AUDIO], question)
    assert [complaints(run) for run in result.runs] == [[], []]
    assert [final_text(run) for run in result.runs] == [TEXT, TEXT]
    assert [(heard.spoken.name, heard.utterances) for heard in result.heard()] == [("a", 1), ("b", 1)] * 2
    assert result.load is not None
    assert result.load.latencies_s
    assert (result.load.errors, result.load.changed) == ([], 0)
    report = describe_level(result)
    assert (report["said"], report["not_heard"], report["utterances"], report["silence_ms"]) == (4, 0, 4, 300)
    assert report["beyond_silence"]["p50_ms"] == pytest.approx(report["final"]["p50_ms"] - 300, abs=0.1)


def arrivals(text: str, final_at_s: float) -> list[Arrival]:
    """One utterance, from its start to the session's end."""
    span = {"utterance": 0, "start_s": 0.0, "end_s": 0.9}
    partial = {"type": "partial", "stable": "", "tail": text, "stable_end_s": 0.0, **span}
    return [
        Arrival(0.0, {"type": "ready"}),
        Arrival(0.1, {"type": "speech_started", "utterance": 0, "start_s": 0.0}),
        Arrival(0.95, partial),
        Arrival(final_at_s, {"type": "final", "text": text, **span}),
        Arrival(final_at_s, {"type": "ended", "audio_s": 1.4}),
    ]


def level(text: str = "so", streams: int = 2, final_at_s: float = 1.2, rest: bool = False) -> LevelResult:
    """As it would be measured of one thing said, by as many streams."""
    spoken = replace(AUDIO, spoken=(Spoken("a", "", 0.0, 0.9),))
    run = StreamRun(Script(AUDIO.pcm), 0.0, arrivals(text, final_at_s), [(0.9, 0.9), (1.4, 1.4)], [0.001] * 40, [], 1000)
    load = LoadResult(1, 2.0, [0.5, 0.7], 10.0, lags_s=[0.0]) if rest else None
    return LevelResult(Level(streams, rest, 500), [spoken] * streams, [run] * streams, load, 0.5)


def broken(**changes: Any) -> LevelResult:
    """A level whose sessions were otherwise."""
    good = level()
    return replace(good, runs=[replace(run, **changes) for run in good.runs])


@pytest.mark.parametrize(
    ("results", "whole", "others", "expected"),
    [
        ([level(), level(streams=1)], ["so", "so"], 0.01, []),
        ([level()], [], 0.01, []),
        ([level(), level("other")], [], 0.01, ["a stream's text is the same at every level"]),
        ([level()], ["so", "other"], 0.01, ["a stream's text is that of its audio as a file"]),
        ([level()], [], 0.06, ["the machine was free for the run"]),
        ([broken(close_code=1011)], [], 0.01, ["every session kept to the protocol"]),
        ([broken(slips_s=[0.05] * 40)], [], 0.01, ["the generator was on time"]),
        ([replace(level(), load=LoadResult(1, 2.0, errors=["x"]))], [], 0.01, ["no request beside the streams failed"]),
        ([replace(level(), load=LoadResult(1, 2.0, changed=1))], [], 0.01, ["no answer beside the streams changed"]),
        ([broken(arrivals=[])], [], 0.01, ["every session kept to the protocol", "everything that was said was heard"]),
    ],
)
def test_what_voids_a_run(results: list[LevelResult], whole: list[str], others: float, expected: list[str]) -> None:
    judged = judge(results, whole, others)
    assert judged["void"] == expected
    assert bool(judged["complaints"]) == any("protocol" in each or "on time" in each for each in expected)


def report(levels: list[LevelResult], **changes: Any) -> str:
    """Return the report of some levels."""
    conditions = {"date": "2026-01-01", "git_revision": "abc", "machine": "a machine, 2 cores", "python": "3", "versions": {}}
    how = {"seconds": 35.0, "recordings": "tests/clips", "clear_recordings": 4}
    return markdown(
        {**conditions, "load_average_before": "0.1", "how": how, **judge(levels, [], 0.0), **changes}
        | {"levels": [describe_level(each) for each in levels]}
    )


def test_the_report_of_a_run() -> None:
    text = report([level(streams=1), level(), level(final_at_s=2.0, rest=True)])
    assert "VOID" not in text
    assert "| 500 ms | 2 |  | final p95 | 300.0 | at most 300: met |" in text
    assert "| 500 ms | 2 | yes | final p95 | 1100.0 | at most 300: missed |" in text
    assert "| 500 ms | 2 |  | first partial p50 | 950.0 | at most 600: missed |" in text
    assert "| 500 ms | 1 |  | 1 | 300 | 300 | -200 | -200 | 0 |" in text
    assert "| 500 ms | 2 | yes | 0.5 | 2 | 2 | 500.0 | 1.0 |" in text


def test_the_report_of_a_void_run_says_so_and_why() -> None:
    text = report([broken(close_code=1011)])
    assert "**VOID: these figures must not be quoted.**" in text
    assert "2 streams, 500 ms of silence, stream 0: the socket was closed with 1011, not 1000" in text


def test_speech_that_was_never_heard_has_no_figures() -> None:
    described = describe_level(broken(arrivals=[]))
    assert (described["not_heard"], described["final"], described["revised_word_share"]) == (2, None, None)
    assert "| 500 ms | 2 |  | final p95 | - | at most 300: not measured |" in report([broken(arrivals=[])])
