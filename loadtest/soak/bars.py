"""The outcomes of a soak, and the bars that it has to pass."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.support.footprint import Reading

SETTLE_S = 5.0
"""How long after a fault's end requests may still suffer from it."""
MIN_SUCCESS = 0.999
MAX_SLOPE_MIB = 1.0
"""Growth of the server's own process in ten minutes."""
SLOPE_NEEDS_S = 1200.0
"""A shorter run says nothing about a slope: freed memory stays in arenas, and their growth is uneven."""


@dataclass(frozen=True)
class Outcome:
    """One request, session or measurement of the users: its end by the monotonic clock, how long it took, and its error."""

    name: str
    end_s: float
    seconds: float
    error: str | None


@dataclass(frozen=True)
class Injection:
    """One fault: from when to when it was there, by the monotonic clock, and what did not go as it should."""

    fault: str
    begin_s: float
    end_s: float
    complaint: str = ""

    def touches(self, outcome: Outcome) -> bool:
        """Whether a request was under way during the fault or soon after it."""
        return outcome.end_s - outcome.seconds < self.end_s + SETTLE_S and outcome.end_s > self.begin_s


@dataclass(frozen=True)
class Bar:
    """A quantity, its limit, and whether it was kept; None where the run was too short to say."""

    name: str
    limit: str
    value: str
    kept: bool | None


def read_outcomes(path: Path) -> list[Outcome]:
    """Read the record of `loadtest/users/mixed.py`."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Outcome(row["name"], row["at_s"], row["ms"] / 1000, row["error"]) for row in rows]


def outside_of(outcomes: Sequence[Outcome], injections: Sequence[Injection]) -> list[Outcome]:
    """Return the outcomes that no fault touches."""
    return [each for each in outcomes if not any(injection.touches(each) for injection in injections)]


def slope_mib(readings: Sequence[Reading], process: str) -> float:
    """Return by how much a process grows in ten minutes, by the straight line through all readings."""
    points = [(reading.moment_s, reading.anonymous_mib[process]) for reading in readings if process in reading.anonymous_mib]
    if len(points) < 2:
        return 0.0
    moments_s, memory_mib = np.array(points).T
    return float(np.polyfit(moments_s - moments_s[0], memory_mib, 1)[0] * 600)


def judge_faults(injections: Sequence[Injection], names: Sequence[str]) -> Bar:
    """Judge whether each of the named faults was injected; a run that had no time for one says nothing about it."""
    seen = {each.fault for each in injections}
    missing = [name for name in names if name not in seen]
    value = f"{len(names) - len(missing)} of {len(names)}" + (f"; not: {', '.join(missing)}" if missing else "")
    return Bar("kinds of faults that were injected", "all", value, None if missing else True)


def judge_outcomes(outcomes: Sequence[Outcome], injections: Sequence[Injection]) -> list[Bar]:
    """Judge what the users saw."""
    outside = outside_of(outcomes, injections)
    good = sum(each.error is None for each in outside) / len(outside) if outside else 0.0
    changed = [each for each in outcomes if each.error and "answer changed" in each.error]
    silent = [each for each in outcomes if each.error and ("Timeout" in each.error or "timed out" in each.error)]
    complaints = [each for each in injections if each.complaint]
    return [
        Bar(
            "outcomes without a failure, away from faults",
            f"at least {MIN_SUCCESS:.1%}",
            f"{good:.2%} of {len(outside)}",
            good >= MIN_SUCCESS,
        ),
        Bar("requests that got no answer at all", "0", str(len(silent)), not silent),
        Bar("answers that differ from the first to the same question", "0", str(len(changed)), not changed),
        Bar("faults after which the server was not ready again", "0", str(len(complaints)), not complaints),
    ]


def judge_memory(readings: Sequence[Reading], process: str) -> Bar:
    """Judge the growth of one process."""
    seconds = readings[-1].moment_s - readings[0].moment_s
    slope = slope_mib(readings, process)
    kept = slope <= MAX_SLOPE_MIB if seconds >= SLOPE_NEEDS_S else None
    return Bar(f"growth of `{process}` in 10 minutes", f"{MAX_SLOPE_MIB:g} MiB", f"{slope:.2f} MiB", kept)
