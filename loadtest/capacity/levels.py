"""Sweeps of the simulator: what so many clients, requests per second or sessions wait, and the most that hold a latency."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtest.capacity.costs import StageCosts, WorkProfile
from loadtest.capacity.simulation import MixOutcome, TrafficMix, repeat_profile, simulate_mix
from loadtest.support.statistics import percentile, percentile_ms

WARM_UP_S = 5.0
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Level:
    """A mix and what came out of it."""

    mix: TrafficMix
    outcome: MixOutcome

    def row(self) -> dict[str, float | str | None]:
        """Return the figures of the level, latencies in milliseconds."""
        return {
            "mix": self.mix.name,
            "files_per_s": round(self.outcome.files_per_s, 2),
            **{f"file_p{each}_ms": percentile_ms(self.outcome.file_waits_s, each) for each in PERCENTILES},
            **{f"final_p{each}_ms": percentile_ms(self.outcome.final_waits_s, each) for each in PERCENTILES},
            "partials_per_session_s": round(self.outcome.partials / self.outcome.seconds / self.mix.sessions, 2)
            if self.mix.sessions
            else None,
            "utilisation": round(self.outcome.utilisation, 3),
            "refused": self.outcome.refused,
        }


def list_file_works(costs: StageCosts, audio_s: float | None) -> tuple[WorkProfile, ...]:
    """Return the work of the transcripts that were measured; of the three nearest in length only, if one is given."""
    works = [each for each in costs.profiles if each.kind == "file" and each.name.startswith("file/")]
    if audio_s is not None:
        works = sorted(works, key=lambda work: abs(work.audio_s - audio_s))[:3]
    return tuple(works)


def make_mix(
    costs: StageCosts, seconds: float, *, clients: int = 0, rate_hz: float = 0.0, sessions: int = 0, audio_s: float | None = None
) -> TrafficMix:
    """Return a mix of the work that was measured. Raises `ValueError` where sessions are wanted and none was."""
    parts = [
        f"{clients} client{'s' * (clients > 1)} in a closed loop" * (clients > 0),
        f"{rate_hz:g} files per second" * (rate_hz > 0),
        f"{sessions} live session{'s' * (sessions > 1)}" * (sessions > 0),
    ]
    if sessions and not costs.streams:
        raise ValueError("no live session was measured")
    streams = tuple(repeat_profile(costs.streams, seconds, first) for first in range(len(costs.streams))) if sessions else ()
    works = list_file_works(costs, audio_s)
    return TrafficMix(" and ".join(part for part in parts if part), clients, rate_hz, sessions, works, streams)


def run_level(costs: StageCosts, mix: TrafficMix, seconds: float, seed: int = 0) -> Level:
    """Simulate one mix."""
    return Level(mix, simulate_mix(costs, mix, seconds, seed=seed, warm_up_s=WARM_UP_S))


def find_most_sessions(costs: StageCosts, seconds: float, limit_s: float, counts: Sequence[int]) -> Iterator[Level]:
    """Simulate growing numbers of sessions until p95 of the waits for finals goes beyond the limit."""
    for count in counts:
        level = run_level(costs, make_mix(costs, seconds, sessions=count), seconds)
        yield level
        if not level.outcome.final_waits_s or percentile(level.outcome.final_waits_s, 95) > limit_s:
            return
