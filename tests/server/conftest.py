"""The event loops that a server may run on."""

import asyncio

import pytest
import uvloop


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def each_event_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test once on each: they differ in what a write to a dead process does."""
    monkeypatch.setattr(asyncio.events, "_event_loop_policy", request.param())
