"""The mixed users of the soak, against a scripted engine: every kind is served, recorded, and judged by the limits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clients.live_server import LiveServer, live_server
from tests.support.fakes.fake_engine import FakeEngine

pytestmark = pytest.mark.operations

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef0123456789abcdef"
KINDS = {"transcribe", "events", "session", "bad file", "left"}


def run_users(server: LiveServer, record: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/users/mixed.py", "--headless", "--host", server.url]
    command += ["--users", "7", "--spawn-rate", "7", "--run-time", "20s", "--session-seconds", "2", "--max-wer", "10"]
    return subprocess.run(
        [*command, "--record", str(record), *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_every_kind_of_user_is_served_and_recorded(tmp_path: Path) -> None:
    with live_server(FakeEngine(), api_keys=f"robot:{KEY}") as server:
        run_users(server, tmp_path / "record", "--max-failed", "1", "--api-key", KEY)
    rows = list(map(json.loads, (tmp_path / "record").read_text().splitlines()))
    assert {row["name"] for row in rows} >= KINDS
    assert [row for row in rows if row["name"] in KINDS - {"session"} and row["error"]] == []


def test_missed_limits_end_with_an_exit_status(tmp_path: Path) -> None:
    engine = FakeEngine()
    with live_server(engine) as server:
        engine.delay_s = 0.2
        done = run_users(server, tmp_path / "record", "--max-p95-s", "0.1")
    assert done.returncode == 1
    assert "FAILED: the 95th percentile of transcripts" in done.stdout + done.stderr
