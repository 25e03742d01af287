"""The load generator counts right answers as right and wrong ones as failures."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.support.answers import AnswerChecker, Clip, read_clips
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.words import word_error_rate
from server.engine.types.events import Event
from server.engine.types.requests import InstructRequest
from server.errors import Overloaded
from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine

ROOT = Path(__file__).parents[2]
CLIP = Clip("a.wav", b"", "Hello, world!")
REPLY: dict[str, Any] = {
    "text": "hello world",
    "finish_reason": "stop",
    "usage": {"audio_frames": 1, "text_tokens": 2, "output_tokens": 3, "total_tokens": 6},
    "audio_s": 1.0,
    "times_ms": {"total_ms": 5.0},
}
WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6)


def judge(checker: AnswerChecker, reply: object, instruction: str = TRANSCRIBE) -> str:
    return checker.complaint(CLIP, instruction, 200, json.dumps(reply).encode())


def test_right_answer() -> None:
    checker = AnswerChecker(0.0)
    assert [judge(checker, REPLY) for _ in range(3)] == ["", "", ""]


def test_changed_answer() -> None:
    checker = AnswerChecker(1.0)
    assert judge(checker, REPLY) == ""
    assert judge(checker, REPLY | {"text": "hello there"}) == "the answer changed: a.wav, 'Transcribe the speech to text.'"
    assert judge(checker, REPLY | {"text": "a greeting"}, "Summarise.") == ""


def test_wrong_words() -> None:
    assert judge(AnswerChecker(0.4), REPLY | {"text": "hello word"}) == "word error rate 0.50 of a.wav is above 0.40"
    assert judge(AnswerChecker(0.4), REPLY | {"text": "a greeting"}, "Summarise.") == ""


@pytest.mark.parametrize(
    "change",
    [{"text": None}, {"finish_reason": "tired"}, {"usage": {}}, {"usage": REPLY["usage"] | {"total_tokens": 7}}, {"audio_s": 0}],
)
def test_wrong_shape(change: dict[str, Any]) -> None:
    assert "not the right shape" in judge(AnswerChecker(1.0), REPLY | change)


def test_no_answer() -> None:
    checker = AnswerChecker(1.0)
    assert checker.complaint(CLIP, TRANSCRIBE, 500, b"") == "status 500"
    assert "not the right shape" in checker.complaint(CLIP, TRANSCRIBE, 200, b"<html>")
    assert "not the right shape" in judge(checker, [])


@given(WORDS.filter(bool), WORDS)
def test_word_error_rate(expected: list[str], given: list[str]) -> None:
    edits = word_error_rate([" ".join(expected)], [" ".join(given)]) * len(expected)
    assert edits == pytest.approx(slow_distance(tuple(expected), tuple(given)))


def slow_distance(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    """By definition."""
    if not left or not right:
        return len(left) + len(right)
    same = slow_distance(left[1:], right[1:]) + (left[0] != right[0])
    return min(same, slow_distance(left[1:], right) + 1, slow_distance(left, right[1:]) + 1)


def test_index_without_clips(tmp_path: Path) -> None:
    (tmp_path / "clips.json").write_text("[]")
    with pytest.raises(ValueError, match="lists no clips"):
        read_clips(tmp_path / "clips.json")


class FullAtFirst(FakeEngine):
    """Refuses the first request."""

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        self.refusal, refusal = None, self.refusal
        if refusal is not None:
            raise refusal
        super().submit(request, deliver)


class Fickle(FakeEngine):
    """Answers differently each time."""

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        self.text = f"hello world {len(self.submitted)}"
        super().submit(request, deliver)


def run_locust(engine: FakeEngine, folder: Path) -> tuple[int, str]:
    """Exit status and output of two users and some six requests."""
    (folder / "clip.wav").write_bytes(audio_file(tone(0.5, 16_000), 16_000, "WAV"))
    (folder / "clips.json").write_text(json.dumps([{"file": "clip.wav", "text": "Hello world."}]))
    with live_server(engine) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        command = [sys.executable, "-m", "locust", "-f", "loadtest/users/locustfile.py", "--headless", "--users", "2"]
        options = ["--requests", "6", "--host", server.url, "--clips", str(folder / "clips.json")]
        result = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    return result.returncode, result.stdout + result.stderr


def test_run_against_a_steady_server_that_refuses_once(tmp_path: Path) -> None:
    engine = FullAtFirst()
    engine.refusal = Overloaded("The queue is full.", retry_after_s=0)
    status, output = run_locust(engine, tmp_path)
    assert status == 0, output
    assert {request.task.sampling.max_tokens for request in engine.submitted} == {128}
    assert re.search(r"refused \(429\) +1 +0\(0\.00%\)", output)


def test_run_against_a_fickle_server(tmp_path: Path) -> None:
    status, output = run_locust(Fickle(), tmp_path)
    assert status == 1, output
    assert "the answer changed: clip.wav" in output
