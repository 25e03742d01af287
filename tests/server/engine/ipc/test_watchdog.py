"""A child counts as silent or stuck after time in which its watcher ran, and only then."""

from pathlib import Path

import pytest

from server.engine.ipc.client import ProcessEngine
from server.engine.ipc.watchdog import LONGEST_TICK_S, WORK_MARGIN, Watchdog
from server.engine.types.events import Done
from server.engine.types.requests import InstructRequest, SpeechTask
from server.engine.types.stats import EngineCounters, EngineStats
from server.errors import EngineFailed
from tests.support.clients.engine_call import Call, request, wait_until
from tests.support.fakes import engine_children
from tests.support.fakes.fake_models import SAMPLE_RATE_HZ, speech

STALL_TIMEOUT_S = 2.0


def report(steps: int, waiting: int = 0, running: int = 0, progress: int = 0, longest_work_s: float = 0.0) -> EngineStats:
    counters = EngineCounters(steps=steps, progress=progress)
    return EngineStats(True, waiting, running, 4, 16, longest_work_s=longest_work_s, counters=counters)


def watchdog_after(*reports: EngineStats) -> Watchdog:
    """Let a second pass after each report."""
    watchdog = Watchdog(100.0, start_timeout_s=60.0, stall_timeout_s=STALL_TIMEOUT_S)
    for index, each in enumerate(reports):
        watchdog.take_report(each)
        for tick in range(1, 11):
            watchdog.advance(100.0 + index + tick / 10)
    return watchdog


def load_for(seconds: int, queued_share: float) -> Watchdog:
    """Let a child load for so long, for a share of which it waits for a processor; then it is lost."""
    watchdog = Watchdog(0.0, start_timeout_s=60.0, stall_timeout_s=STALL_TIMEOUT_S)
    for tick in range(1, 10 * seconds + 1):
        watchdog.advance(tick / 10, queued_share * tick / 10)
    watchdog.advance(seconds + 0.1, 0.0)
    return watchdog


def test_a_child_that_loads_slowly_for_want_of_a_processor_is_left_in_peace() -> None:
    assert load_for(200, queued_share=0.9).problem is None
    assert load_for(200, queued_share=0.0).problem == "it reported nothing for 60 s"


def test_a_child_that_works_gets_no_such_time() -> None:
    watchdog = watchdog_after(report(1), report(1, running=1))
    watchdog.advance(102.5, 300.0)
    assert watchdog.silent_s == pytest.approx(1.5)


@pytest.mark.parametrize(("stall_timeout_s", "silence_s"), [(2.0, 1.5), (10.0, 2.5)])
def test_silence_is_told_after_several_reports_are_missing(stall_timeout_s: float, silence_s: float) -> None:
    """An idle child reports twice a second, so one that is late is no silence."""
    watchdog = Watchdog(0.0, start_timeout_s=60.0, stall_timeout_s=stall_timeout_s)
    watchdog.take_report(report(1))
    silent = []
    for tick in range(1, 30):
        watchdog.advance(tick / 10)
        silent.append(watchdog.is_silent)
    assert silent.index(True) / 10 == pytest.approx(silence_s)
    watchdog.take_report(report(1))
    assert not watchdog.is_silent


def test_every_report_breaks_the_silence() -> None:
    watchdog = watchdog_after(report(1), report(1), report(1, running=1))
    assert watchdog.silent_s == pytest.approx(1)


@pytest.mark.parametrize("busy", [report(1, waiting=1), report(1, running=1)])
def test_work_without_progress_is_being_stuck(busy: EngineStats) -> None:
    watchdog = watchdog_after(report(1), busy, busy, busy)
    assert watchdog.stuck_s == pytest.approx(4)
    assert watchdog.silent_s == pytest.approx(1)
    assert watchdog.problem == "it had work and made no progress for 2 s"


def test_being_stuck_shows_before_the_child_is_replaced() -> None:
    """The server is not ready meanwhile."""
    busy = report(1, running=1)
    assert not watchdog_after(busy).is_stuck
    stuck = watchdog_after(busy, busy)
    assert stuck.is_stuck
    assert stuck.problem is None
    assert not watchdog_after(busy, busy, report(2, running=1)).is_stuck


def test_a_step_or_progress_or_an_empty_engine_is_not() -> None:
    assert watchdog_after(report(1, running=1), report(1, running=1), report(2, running=1)).stuck_s == pytest.approx(1)
    assert watchdog_after(report(1, running=1), report(1, running=1), report(1, 1, progress=1)).stuck_s == pytest.approx(1)
    assert watchdog_after(report(1, running=1), report(1, running=1), report(1)).stuck_s == pytest.approx(1)


def test_a_slow_model_may_take_several_times_its_own_estimate() -> None:
    slow = report(1, running=1, longest_work_s=1.0)
    assert watchdog_after(*[slow] * int(WORK_MARGIN)).problem is None
    assert watchdog_after(*[slow] * int(WORK_MARGIN + 2)).problem is not None


def test_a_start_has_its_own_limit() -> None:
    watchdog = Watchdog(0.0, start_timeout_s=60.0, stall_timeout_s=STALL_TIMEOUT_S)
    for tick in range(1, 601):
        watchdog.advance(tick / 10)
    assert watchdog.problem is None
    watchdog.advance(60.2)
    assert watchdog.problem == "it reported nothing for 60 s"


def test_time_in_which_the_watcher_slept_is_not_held_against_the_child() -> None:
    watchdog = Watchdog(100.0, start_timeout_s=60.0, stall_timeout_s=STALL_TIMEOUT_S)
    watchdog.advance(1000.0)
    assert watchdog.silent_s == watchdog.stuck_s == LONGEST_TICK_S


def test_a_slow_encoder_is_left_in_peace_and_one_that_hangs_is_not(tmp_path: Path) -> None:
    """A step of the slow one takes longer than `stall_timeout_s`; no estimate covers the hang."""
    factory, gate = f"{engine_children.__name__}:{engine_children.slow.__name__}", tmp_path / "closed"
    engine = ProcessEngine(factory, (str(gate),), SAMPLE_RATE_HZ, 30.0, transcribes=bool, stall_timeout_s=STALL_TIMEOUT_S)
    engine.start()
    try:
        calls = [Call(engine, InstructRequest(f"r{index}", speech(index, 4.0), SpeechTask("Transcribe."))) for index in range(3)]
        assert all(isinstance(call.outcome(), Done) for call in calls)
        assert engine.stats().counters.restarts == 0
        gate.touch()
        assert isinstance(Call(engine, request("hangs")).error(), EngineFailed)
        gate.unlink()
        wait_until(lambda: engine.stats().ready)
    finally:
        gate.unlink(missing_ok=True)
        engine.drain(0)
