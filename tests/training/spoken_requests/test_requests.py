"""The committed benchmark of spoken requests is large enough, its halves are apart, and its texts hold their answers."""

import json
from collections import Counter
from pathlib import Path

import pytest

from training.spoken_requests.request import VOICES, SpokenRequest, read_requests, write_requests
from training.spoken_requests.speak import REQUESTS

ALL = read_requests(REQUESTS)
REPORTED = [request for request in ALL if request.half == "reported"]


def test_enough_requests_of_every_kind_are_reported() -> None:
    counts = Counter(request.kind for request in REPORTED)
    assert sum(counts.values()) >= 200
    assert set(counts) == {"fact", "question", "topic", "intent", "yes_no", "list", "summary", "slots", "translation"}
    assert min(counts.values()) >= 16
    assert len({request.id for request in ALL}) == len(ALL)


def test_the_halves_share_no_text_and_no_recording() -> None:
    other = [request for request in ALL if request.half == "tuning"]
    assert not {request.text for request in REPORTED} & {request.text for request in other}
    assert not {request.audio for request in REPORTED} & {request.audio for request in other}


@pytest.mark.parametrize("kind", ["fact", "list", "slots"])
def test_answers_stand_in_the_text(kind: str) -> None:
    for request in ALL:
        if request.kind == kind:
            facts = [*([value] for value in request.slots.values()), *request.expected]
            assert facts
            assert all(any(each.lower() in request.text.lower() for each in fact) for fact in facts), request.id


def test_options_hold_the_answer_once() -> None:
    for request in ALL:
        if request.options:
            assert request.options.count(request.expected[0][0]) == 1


def test_what_is_said_not_to_be_mentioned_is_not() -> None:
    for request in ALL:
        if request.kind == "yes_no" and '"' in request.instruction:
            word = request.instruction.split('"')[1]
            assert (word in request.text) == (request.expected == [["yes"]]), request.id


def test_requests_are_spoken_by_the_kept_voices_or_recorded() -> None:
    for request in ALL:
        assert (request.voice is None) != (request.recording is None)
        assert request.voice is None or request.voice in VOICES[request.language]


def test_requests_are_written_and_read(tmp_path: Path) -> None:
    write_requests(tmp_path / "requests.jsonl", ALL[:3])
    assert read_requests(tmp_path / "requests.jsonl") == ALL[:3]
    assert isinstance(ALL[0], SpokenRequest)
    assert json.loads((tmp_path / "requests.jsonl").read_text().splitlines()[0])["id"] == ALL[0].id
