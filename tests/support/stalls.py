"""Tests that fail while the machine stands still are run once more, and the report says so.

Timeouts are part of what is tested, so that many tests follow the real clock. A shared machine sometimes gives a process
no processor for a second: a limit that is far away then passes. A test is repeated only if it failed and such a stall was
seen while it ran; a failure on a machine that goes on is final.
"""

import threading
import time
from types import TracebackType
from typing import Self

import pytest
from _pytest.runner import runtestprotocol

TICK_S = 0.02
# A pause that no healthy machine makes between two ticks of an idle thread, and that is shorter than any limit of a test.
STALL_S = 0.3

KEY = "repeated after a stall"


class StallWatch:
    """The longest time within the block during which an idle thread was not run, as `longest_s`."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        before_s = time.monotonic()
        while not self._ended.wait(TICK_S):
            now_s = time.monotonic()
            self.longest_s = max(self.longest_s, now_s - before_s - TICK_S)
            before_s = now_s


class StallPlugin:
    """The plugin of pytest that repeats tests and lists them at the end."""

    def __init__(self) -> None:
        self.repeated: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        with StallWatch() as watch:
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if any(report.failed for report in reports) and watch.longest_s > STALL_S:
            text = next(report.longreprtext for report in reports if report.failed)
            errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            reports[0].user_properties.append((KEY, f"{watch.longest_s:.1f} s without the processor; before: {errors[:1]}"))
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.repeated += [f"{report.nodeid}: {text}" for key, text in report.user_properties if key == KEY]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.repeated:
            terminalreporter.section(KEY)
            for line in self.repeated:
                terminalreporter.write_line(line)
