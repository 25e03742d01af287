"""Locust's users for live audio and for a fixed rate of files: what they count, and when their figures are void."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.support.clients.live_server import audio_file, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.scripted_stream import Event, scripted_server, unchanged

ROOT = Path(__file__).parents[2]
RATE_HZ = 16_000
# A machine that is busy with other tests makes the generator late.
LENIENT = ("--max-slip-ms", "10000")
STALLING = """
import time

import gevent
from gevent.monkey import get_original

from loadtest.users.open_loop import Arrivals, add_options, prepare

def stall():
    while True:
        gevent.sleep(0.05)
        get_original("time", "sleep")(0.1)

gevent.spawn(stall)
"""


def run_locust(file: str, *options: str) -> tuple[int, str]:
    """Exit status and output."""
    command = [sys.executable, "-m", "locust", "-f", file, "--headless", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    return result.returncode, result.stdout + result.stderr


def counted(output: str, name: str) -> list[int]:
    """How many there were of a name in the final statistics, and how many of them failed."""
    found = re.findall(rf"{re.escape(name)} +(\d+) +(\d+)\(", output)
    return [int(number) for number in found[-1]] if found else []


def stream(folder: Path, twist: Callable[[Event], list[Event]]) -> tuple[int, str]:
    """Two sessions with one second of speech each."""
    quiet = np.zeros(round(0.1 * RATE_HZ), np.float32)
    (folder / "eval").mkdir()
    samples = np.concatenate([quiet, tone(1.0, RATE_HZ), quiet])
    (folder / "eval" / "clip.flac").write_bytes(audio_file(samples, RATE_HZ, "FLAC"))
    (folder / "eval.jsonl").write_text(json.dumps({"file": "eval/clip.flac", "text": "alpha bravo", "language": "en"}))
    with scripted_server(twist=twist) as server:
        options = ["--users", "2", "--spawn-rate", "2", "--sessions", "2", "--session-seconds", "2", *LENIENT]
        return run_locust(
            "loadtest/users/stream.py", *options, "--silence-ms", "200", "--data", str(folder), "--host", server.url
        )


def post_files(folder: Path, file: str, *more: str) -> tuple[int, str]:
    """Ten files at ten per second."""
    (folder / "clip.wav").write_bytes(audio_file(tone(0.5, RATE_HZ), RATE_HZ, "WAV"))
    (folder / "clips.json").write_text(json.dumps([{"file": "clip.wav", "text": "Hello world."}]))
    with live_server(FakeEngine()) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        options = ["--rate", "10", "--requests", "10", "--clips", str(folder / "clips.json"), "--host", server.url]
        return run_locust(file, *options, *more)


def test_streams_that_are_answered(tmp_path: Path) -> None:
    status, output = stream(tmp_path, unchanged)
    assert status == 0, output
    for name in ("session", "first partial", "end of speech to final", "revised words"):
        assert counted(output, name) == [2, 0], output


def test_streams_whose_finals_are_missing(tmp_path: Path) -> None:
    status, output = stream(tmp_path, lambda event: [] if event["type"] == "final" else [event])
    assert status == 1, output
    assert counted(output, "session") == [2, 2]
    assert "1 utterances were started and 0 answered" in output


def test_files_at_a_fixed_rate(tmp_path: Path) -> None:
    status, output = post_files(tmp_path, "loadtest/users/open_loop.py", *LENIENT)
    assert status == 0, output
    assert counted(output, "answer") == counted(output, "service") == [10, 0]


def test_a_generator_that_is_late_voids_the_run(tmp_path: Path) -> None:
    (tmp_path / "stalling.py").write_text(STALLING)
    status, output = post_files(tmp_path, str(tmp_path / "stalling.py"))
    assert status == 1, output
    assert "VOID: the generator slipped" in output
