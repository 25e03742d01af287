"""Times and formats over HTTP: the reply has the times and the format that the form asks for."""

import json

import pytest

from server.errors import InvalidRequest
from tests.support.clients.live_server import LiveServer, audio_file, error_code, instruct, tone
from tests.support.fakes.fake_engine import FakeEngine

CLIP = audio_file(tone(1.5, 16_000), 16_000, "FLAC", "PCM_16")
WORDS = [
    {"word": "Well,", "start_s": 0.0, "end_s": 0.5},
    {"word": "hello.", "start_s": 0.5, "end_s": 1.0},
    {"word": "World!", "start_s": 1.0, "end_s": 1.5},
]
SEGMENTS = [
    {"start_s": 0.0, "end_s": 1.0, "text": "Well, hello."},
    {"start_s": 1.0, "end_s": 1.5, "text": "World!"},
]


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    engine.text = "Well, hello. World!"
    return engine


@pytest.mark.parametrize(
    ("timestamps", "times"),
    [("none", {}), ("segments", {"segments": SEGMENTS}), ("words", {"segments": SEGMENTS, "words": WORDS})],
)
@pytest.mark.parametrize("stream", ["false", "true"])
def test_times_are_as_fine_as_asked_for(
    server: LiveServer, engine: FakeEngine, timestamps: str, times: dict[str, object], stream: str
) -> None:
    response = instruct(server, CLIP, timestamps=timestamps, stream=stream)
    reply = json.loads(response.text.strip().rpartition("data: ")[2]) if stream == "true" else response.json()
    assert {name: reply[name] for name in ("segments", "words") if name in reply} == times
    assert engine.submitted[0].task.word_times == {"none": "none", "segments": "if_known", "words": "required"}[timestamps]


@pytest.mark.parametrize(
    ("format", "media", "body"),
    [
        ("text", "text/plain; charset=utf-8", "Well, hello. World!"),
        (
            "srt",
            "application/x-subrip",
            "1\n00:00:00,000 --> 00:00:01,000\nWell, hello.\n\n2\n00:00:01,000 --> 00:00:01,500\nWorld!\n\n",
        ),
        (
            "vtt",
            "text/vtt; charset=utf-8",
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nWell, hello.\n\n00:00:01.000 --> 00:00:01.500\nWorld!\n\n",
        ),
    ],
)
def test_other_formats_are_the_text_alone(server: LiveServer, engine: FakeEngine, format: str, media: str, body: str) -> None:
    response = instruct(server, CLIP, format=format)
    assert (response.status_code, response.headers["content-type"], response.text) == (200, media, body)
    assert "total;dur=" in response.headers["server-timing"]
    assert engine.submitted[0].task.word_times == ("none" if format == "text" else "if_known")


def test_subtitles_of_silence_are_empty(server: LiveServer, engine: FakeEngine) -> None:
    engine.text = ""
    assert instruct(server, CLIP, format="srt").text == ""
    assert instruct(server, CLIP, timestamps="words").json()["words"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"format": "srt", "stream": "true"}, "format"),
        ({"format": "text", "stream": "true"}, "format"),
        ({"format": "text", "timestamps": "words"}, "timestamps"),
    ],
)
def test_what_does_not_go_together_is_refused(server: LiveServer, engine: FakeEngine, fields: dict[str, str], param: str) -> None:
    response = instruct(server, CLIP, **fields)
    assert (response.status_code, error_code(response), response.json()["error"]["param"]) == (400, "invalid_request", param)
    assert engine.submitted == []


def test_without_the_times_of_words_the_text_is_one_segment(server: LiveServer, engine: FakeEngine) -> None:
    engine.tells_word_times = False
    assert instruct(server, CLIP, format="srt").text == "1\n00:00:00,000 --> 00:00:01,500\nWell, hello. World!\n\n"
    reply = instruct(server, CLIP, timestamps="segments").json()
    assert reply["segments"] == [{"start_s": 0.0, "end_s": 1.5, "text": "Well, hello. World!"}]
    response = instruct(server, CLIP, timestamps="words")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "timestamps")


def test_audio_that_is_cut_has_a_segment_for_each_utterance(server: LiveServer, engine: FakeEngine) -> None:
    engine.tells_word_times = False
    reply = instruct(server, CLIP, timestamps="segments", chunking="voice").json()
    assert reply["segments"] == [
        {"start_s": 0.0, "end_s": 1.0, "text": "Transcribe. 0"},
        {"start_s": 1.0, "end_s": 1.5, "text": "Transcribe. 1"},
    ]


def test_an_engine_that_cannot_tell_times_has_them_refused(server: LiveServer, engine: FakeEngine) -> None:
    engine.refusal = InvalidRequest("Not what was said.", param="timestamps")
    response = instruct(server, CLIP, "Translate it.", format="vtt")
    assert (response.status_code, error_code(response)) == (400, "invalid_request")
