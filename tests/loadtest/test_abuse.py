"""The table of clients that leave, stall or read nothing: each target can be met and missed."""

from collections import Counter

import pytest

from loadtest.hostile.aborts import Kind, Report
from loadtest.hostile.abuse import STALLS, abort_rows, markdown, stall_rows
from loadtest.hostile.attacks import ATTACKS
from loadtest.hostile.trial import Outcome
from loadtest.hostile.victim import Measurement


def measurement(latency_s: float, refused: int = 0) -> Measurement:
    return Measurement([latency_s] * 10, Counter({"200": 10, "429": refused}))


def outcome(attacked_s: float = 0.11, refused: int = 0, most_mib: float = 160.0) -> Outcome:
    return Outcome("W1", measurement(0.1), measurement(attacked_s, refused), 0.0, (100.0, most_mib, 101.0))


@pytest.mark.parametrize(
    ("parts", "missed"),
    [
        ({}, []),
        ({"attacked_s": 0.13}, ["others' p99, at most 1.2 times that alone"]),
        ({"refused": 1}, ["others are all answered"]),
        ({"most_mib": 165.0}, ["memory within 64 MiB"]),
    ],
)
def test_each_target_of_a_stall_can_be_missed(parts: dict[str, float], missed: list[str]) -> None:
    rows = stall_rows(outcome(**parts))  # type: ignore[arg-type]
    assert [row.target for row in rows if not row.met] == missed
    assert ("| NO |" in markdown(rows)) == bool(missed)


@pytest.mark.parametrize(
    ("freed_s", "second", "met"),
    [
        ([0.1, 0.2], "same", [True, True]),
        ([0.1, 0.3], "same", [False, True]),
        ([0.1, None], "same", [False, True]),
        ([0.1, 0.2], "different", [True, False]),
    ],
)
def test_each_target_of_the_aborts_can_be_missed(freed_s: list[float | None], second: str, met: list[bool]) -> None:
    answers: Counter[tuple[Kind, str]] = Counter({("json", "same"): 3, ("sse", second): 1})
    assert [row.met for row in abort_rows(Report(freed_s, answers))] == met


def test_what_is_never_measured_is_no_success() -> None:
    nothing = Outcome("W1", Measurement(), Measurement(), None)
    assert not any(row.met for row in stall_rows(nothing))
    assert not any(row.met for row in abort_rows(Report()))
    assert set(STALLS) <= set(ATTACKS)
