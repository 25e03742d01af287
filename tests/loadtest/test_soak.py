"""The soak's bars: outcomes count as touched by a fault or not, and what is missed is told."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loadtest.soak.__main__ as soak
from loadtest.soak.__main__ import CALM_S, FIRST_FAULT_S, MOST_PERIOD_S, choose_period, due_after
from loadtest.soak.bars import (
    SETTLE_S,
    SLOPE_NEEDS_S,
    Bar,
    Injection,
    Outcome,
    judge_faults,
    judge_memory,
    judge_outcomes,
    outside_of,
    read_outcomes,
    slope_mib,
)
from loadtest.soak.faults import FAULTS
from loadtest.soak.report import markdown, plot
from loadtest.support.answers import last_event
from loadtest.support.footprint import Reading

FAULT = Injection("engine killed", 100.0, 103.0)
CONDITIONS = {
    "date": "today",
    "git_revision": "0",
    "machine": "here",
    "load_average_before": "0",
    "python": "3",
    "versions": {},
    "other_cpu_share": 0.0,
    "low_priority_cpu_share": 0.0,
    "void": [],
    "seconds": 300.0,
    "users": 5,
    "period_s": 60.0,
}


def outcome(end_s: float, seconds: float = 1.0, error: str | None = None) -> Outcome:
    return Outcome("transcribe", end_s, seconds, error)


def kept(bars: list[Bar]) -> list[bool | None]:
    return [bar.kept for bar in bars]


@pytest.mark.parametrize(
    ("end_s", "seconds", "is_outside"),
    [
        (99.0, 1.0, True),
        (101.0, 0.5, False),
        (110.0, 9.0, False),
        (104.0 + SETTLE_S, 2.0, False),
        (105.0 + SETTLE_S, 1.0, True),
    ],
)
def test_a_request_that_was_under_way_during_a_fault_is_set_aside(end_s: float, seconds: float, is_outside: bool) -> None:
    assert bool(outside_of([outcome(end_s, seconds)], [FAULT])) == is_outside


def test_failures_during_a_fault_are_allowed_and_others_are_not() -> None:
    good = [outcome(float(end_s)) for end_s in range(10, 90)]
    assert kept(judge_outcomes([*good, outcome(101.0, error="status 500")], [FAULT])) == [True] * 4
    assert kept(judge_outcomes([*good, outcome(50.5, error="status 500")], [FAULT])) == [False, True, True, True]


def test_silence_and_changed_answers_are_never_allowed() -> None:
    assert kept(judge_outcomes([outcome(101.0, error="ReadTimeout: timed out")], [FAULT]))[1:] == [False, True, True]
    assert kept(judge_outcomes([outcome(101.0, error="the answer changed: a.wav")], [FAULT]))[1:] == [True, False, True]


def test_a_server_that_does_not_come_back_is_told() -> None:
    lost = Injection("engine killed", 0.0, 60.0, "not ready within 60 s")
    assert kept(judge_outcomes([outcome(99.0)], [lost])) == [True, True, True, False]


def test_a_run_without_outcomes_keeps_no_bar_of_success() -> None:
    assert kept(judge_outcomes([], []))[0] is False


@pytest.mark.parametrize("seconds", [300.0, 510.0, 3300.0])
def test_every_fault_has_its_turn(seconds: float) -> None:
    period_s = choose_period(seconds, len(FAULTS))
    assert FIRST_FAULT_S + len(FAULTS) * period_s <= seconds
    assert period_s <= MOST_PERIOD_S


@pytest.mark.parametrize(("took_s", "due_s"), [(1.0, 190.0), (89.0, 189.0 + CALM_S)])
def test_a_fault_does_not_come_in_the_wake_of_another(took_s: float, due_s: float) -> None:
    assert due_after(Injection("engine killed", 100.0, 100.0 + took_s), 90.0) == due_s


def test_faults_that_had_no_time_are_named() -> None:
    assert judge_faults([FAULT], ["engine killed"]).kept is True
    short = judge_faults([FAULT], ["engine killed", "disk full"])
    assert short.kept is None
    assert "disk full" in short.value


@given(slope=st.floats(-50, 50), start_mib=st.floats(10, 1000), readings=st.integers(2, 50))
def test_the_slope_is_that_of_a_straight_line(slope: float, start_mib: float, readings: int) -> None:
    line = [Reading(10.0 * number, {"server": start_mib + slope * number / 60}, 0.0) for number in range(readings)]
    assert slope_mib(line, "server") == pytest.approx(slope, abs=1e-6)


def test_a_short_run_says_nothing_about_growth() -> None:
    def readings(seconds: float, growth_mib: float) -> list[Reading]:
        return [Reading(0.0, {"server": 50.0}, 0.0), Reading(seconds, {"server": 50.0 + growth_mib}, 0.0)]

    assert judge_memory(readings(300.0, 40.0), "server").kept is None
    assert judge_memory(readings(SLOPE_NEEDS_S, 40.0), "server").kept is False
    assert judge_memory(readings(SLOPE_NEEDS_S, 1.0), "server").kept is True


def test_the_record_of_the_users_is_read(tmp_path: Path) -> None:
    rows = [{"at_s": 5.0, "name": "events", "ms": 1500.0, "error": None}]
    (tmp_path / "record").write_text("\n".join(map(json.dumps, rows)))
    assert read_outcomes(tmp_path / "record") == [Outcome("events", 5.0, 1.5, None)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "missing"),
        (": heartbeat\n\n", "missing"),
        ('data: {"type": "instruct.text.delta"}\n\ndata: {"type": "error"}\n\n', "error"),
        ('data: {"type": "instruct.text.done"}\n\n', "instruct.text.done"),
        ('data: {"ty', "not readable"),
    ],
)
def test_the_last_event_of_a_stream(text: str, expected: str) -> None:
    assert last_event(text) == expected


def test_the_report_names_faults_failures_and_missed_bars() -> None:
    outcomes = [outcome(10.0), outcome(50.0, error="status 500")]
    text = markdown(CONDITIONS, judge_outcomes(outcomes, [FAULT]), [FAULT], outcomes, 0.0)
    assert "| engine killed | 100 s | 3.0 s |" in text
    assert "**MISSED**" in text
    assert "- 1x transcribe: status 500" in text


def test_a_void_run_is_void_for_times_only() -> None:
    text = markdown(CONDITIONS | {"void": ["the generator slipped"]}, [], [], [], 0.0)
    assert "**VOID" in text
    assert "would be a fault on a busy machine too" in text


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is of the extras `bench` and `operations`")
    readings = [Reading(moment_s, {"server": 50.0}, 0.0) for moment_s in (0.0, 60.0)]
    plot([outcome(10.0), outcome(50.0, error="status 500")], [FAULT], readings, tmp_path / "soak.png", 0.0)
    assert (tmp_path / "soak.png").stat().st_size > 1000


def test_a_fault_lasts_until_the_server_is_ready_however_late(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, False, True])
    monkeypatch.setattr(soak, "is_ready", lambda _server: next(answers))
    monkeypatch.setattr(soak, "READY_TIMEOUT_S", 0.1)
    monkeypatch.setitem(FAULTS, "none", lambda _target: None)
    injection = soak.inject("none", Mock())
    assert injection.complaint == "not ready within 0.1 s"
    assert next(answers, "all asked") == "all asked"
