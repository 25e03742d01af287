"""A child counts as silent or stuck after time in which its watcher ran, and only then."""

import pytest

from server.engine.ipc.heartbeat import LONGEST_TICK_S, Watchdog
from server.engine.types.stats import EngineCounters, EngineStats


def report(steps: int, waiting: int = 0, running: int = 0) -> EngineStats:
    return EngineStats(True, waiting, running, 4, 16, counters=EngineCounters(steps=steps))


def heartbeat_after(*reports: EngineStats) -> Watchdog:
    """A second passes after each report."""
    heartbeat = Watchdog(100.0)
    for index, each in enumerate(reports):
        heartbeat.beat(each)
        for tick in range(1, 11):
            heartbeat.look(100.0 + index + tick / 10)
    return heartbeat


def test_every_report_breaks_the_silence() -> None:
    heartbeat = heartbeat_after(report(1), report(1), report(1, running=1))
    assert heartbeat.silent_s == pytest.approx(1)


@pytest.mark.parametrize("busy", [report(1, waiting=1), report(1, running=1)])
def test_work_without_a_step_is_being_stuck(busy: EngineStats) -> None:
    heartbeat = heartbeat_after(report(1), busy, busy, busy)
    assert heartbeat.stuck_s == pytest.approx(4)
    assert heartbeat.silent_s == pytest.approx(1)


def test_a_step_or_an_empty_engine_is_not() -> None:
    assert heartbeat_after(report(1, running=1), report(1, running=1), report(2, running=1)).stuck_s == pytest.approx(1)
    assert heartbeat_after(report(1, running=1), report(1, running=1), report(1)).stuck_s == pytest.approx(1)


def test_time_in_which_the_watcher_slept_is_not_held_against_the_child() -> None:
    heartbeat = Watchdog(100.0)
    heartbeat.look(1000.0)
    assert heartbeat.silent_s == heartbeat.stuck_s == LONGEST_TICK_S
