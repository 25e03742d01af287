"""Tests are repeated after a stall of the machine, and only then."""

import os
import subprocess
import time

import pytest

from tests.support import stalls
from tests.support.stalls import StallPlugin, StallWatch

FAILS_ONCE = """
import pathlib

def test_it():
    seen = pathlib.Path("seen")
    again = seen.exists()
    seen.touch()
    assert again, "the first time"
"""


def stop_this_process(seconds: float) -> None:
    subprocess.run(["sh", "-c", f"kill -STOP {os.getpid()}; sleep {seconds}; kill -CONT {os.getpid()}"], check=True)


def run_tests(pytester: pytest.Pytester) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", plugins=[StallPlugin()])


def test_a_stall_is_seen() -> None:
    with StallWatch() as watch:
        time.sleep(0.1)
        stop_this_process(0.6)
        time.sleep(0.1)
    assert watch.longest_s > 0.4


def test_a_failure_during_a_stall_is_repeated_and_reported(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "STALL_S", -1.0)
    pytester.makepyfile(FAILS_ONCE)
    result = run_tests(pytester)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*repeated after a stall*", "*test_it: *the first time*"])


def test_a_failure_without_a_stall_is_final(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "STALL_S", 1e9)
    pytester.makepyfile(FAILS_ONCE)
    run_tests(pytester).assert_outcomes(failed=1)


def test_a_test_that_fails_again_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "STALL_S", -1.0)
    pytester.makepyfile("def test_it():\n    assert False")
    run_tests(pytester).assert_outcomes(failed=1)
