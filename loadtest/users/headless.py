"""Locust's mixed users as a process of their own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loadtest.support.paths import ROOT


@contextmanager
def running_users(url: str, users: int, seconds: float, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run locust's mixed users, which stop by themselves; end them with the block."""
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "users" / "mixed.py"), "--headless", "--host", url]
    command += ["--users", str(users), "--spawn-rate", "2", "--run-time", f"{seconds:.0f}s", "--stop-timeout", "60"]
    command += ["--only-summary", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
