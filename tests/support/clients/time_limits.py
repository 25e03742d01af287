"""Time limits that begin when a test says so, so that a busy machine does not reach them sooner."""

import asyncio
from collections.abc import Callable

import pytest

from server.api.exchange import TimeLimit
from server.api.live.session import SocketSession


def limit_requests_once(condition: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the time limit of each request from the moment at which the condition holds."""
    wait = TimeLimit.wait

    async def wait_for_both(limit: TimeLimit) -> None:
        while not condition():
            await asyncio.sleep(0.001)
        limit.extend()
        await wait(limit)

    monkeypatch.setattr(TimeLimit, "wait", wait_for_both)


def watch_sessions_once(condition: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin to watch the clock of each live session once the condition holds."""
    watch = SocketSession._watch_clock

    async def watch_later(session: SocketSession) -> None:
        while not condition():
            await asyncio.sleep(0.001)
        await watch(session)

    monkeypatch.setattr(SocketSession, "_watch_clock", watch_later)
