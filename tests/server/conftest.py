"""The event loops that a server may run on, and child processes that a test stops."""

import asyncio
import os
import signal

import pytest
import uvloop

from server.child_process import ChildProcess

STOPPED_TIMEOUT_S = 0.2


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def each_event_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test once on each: they differ in what a write to a dead process does."""
    monkeypatch.setattr(asyncio.events, "_event_loop_policy", request.param())


@pytest.fixture
def stopped_children_time_out_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the limit for the answers of children that the test has stopped; the others have the time that they always have."""
    stopped: set[int] = set()
    send_signal, read, read_line = os.kill, ChildProcess.read, ChildProcess.read_line

    def note_and_send(process_id: int, number: int) -> None:
        send_signal(process_id, number)
        if number == signal.SIGSTOP:
            stopped.add(process_id)
        elif number == signal.SIGCONT:
            stopped.discard(process_id)

    def limit_s(child: ChildProcess, timeout_s: float) -> float:
        return STOPPED_TIMEOUT_S if child.process_id in stopped else timeout_s

    async def read_soon(child: ChildProcess, count: int, timeout_s: float) -> bytes:
        return await read(child, count, limit_s(child, timeout_s))

    async def read_line_soon(child: ChildProcess, timeout_s: float) -> bytes:
        return await read_line(child, limit_s(child, timeout_s))

    monkeypatch.setattr(os, "kill", note_and_send)
    monkeypatch.setattr(ChildProcess, "read", read_soon)
    monkeypatch.setattr(ChildProcess, "read_line", read_line_soon)
