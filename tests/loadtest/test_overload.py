"""The overload trial: what it counts on a scripted engine, and which targets it takes as met."""

import asyncio

import httpx
import pytest

from loadtest.hostile.target import read_target
from loadtest.overload import Phase, Report, measure
from server.errors import Overloaded
from tests.support.clients.live_server import scripted_engine_server


def test_all_phases_are_counted() -> None:
    with scripted_engine_server() as (_, server):
        report = asyncio.run(measure(read_target(server.url), 0.2, period_s=0.05))
    for counted in (report.normal, report.overload, report.batch, report.interactive):
        assert set(counted.outcomes) <= {"200", "429"}
        assert counted.without_retry_after == 0
    assert report.interactive.outcomes.total() > 0
    assert report.recovery_s is not None
    assert f"Capacity: {report.capacity:.2f} requests" in report.markdown()


def test_a_server_that_answers_nothing_has_no_capacity() -> None:
    with scripted_engine_server() as (engine, server):
        engine.refusal = Overloaded("The fake engine is full.", retry_after_s=1)
        with pytest.raises(RuntimeError, match="The server answered nothing"):
            asyncio.run(measure(read_target(server.url), 0.05))


def phase(answered: int, refused_s: float = 0.01, others: int = 0, retry_after: str = "1") -> Phase:
    result = Phase(10.0)
    for _ in range(answered):
        result.add(httpx.Response(200), 0.1)
    for _ in range(20):
        result.add(httpx.Response(429, headers={"retry-after": retry_after} if retry_after else {}), refused_s)
    for _ in range(others):
        result.add(None, 1.0)
    return result


def missed(**parts: object) -> list[str]:
    """Return the first words of the targets that a run with these parts misses."""
    served = Phase(10.0)
    served.add(httpx.Response(200), 0.1)
    run: dict[str, object] = {"normal": phase(100), "overload": phase(95), "recovery_s": 1.0, "batch": phase(90), **parts}
    report = Report(capacity=10.0, **{"interactive": served, **run})  # type: ignore[arg-type]
    return [target.split()[0] for target, (_, met) in report.checks().items() if not met]


def test_each_target_can_be_missed() -> None:
    refused = Phase(10.0)
    refused.add(httpx.Response(429, headers={"retry-after": "1"}), 0.01)
    assert missed() == []
    assert missed(overload=phase(89)) == ["goodput"]
    assert missed(overload=phase(95, refused_s=0.06)) == ["refusals,"]
    assert missed(overload=phase(95, retry_after="")) == ["refusals"]
    assert missed(overload=phase(95, others=1)) == ["other"]
    assert missed(recovery_s=None) == missed(recovery_s=5.1) == ["well"]
    assert missed(interactive=refused) == ["interactive"]
