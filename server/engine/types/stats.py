"""Counters and a snapshot of an engine, for metrics and readiness. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

DRAFT_POSITIONS = 16
# Of several engines together these are no plain sums.
NOT_SUMMED = ("ready", "step_age_s", "predicted_wait_s", "is_overloaded", "longest_work_s", "counters")


@dataclass(frozen=True)
class EngineCounters:
    """Totals since the engine started.

    A request has one of the `llm_passes` for each prefill chunk and each decode step, however many requests share the step.
    `progress` grows with each piece of work within a step: an encoder batch, a prefill chunk, a decode pass, audio listened to.
    `utterances` are those of live sessions; in the `silent_utterances` of them the voice detector heard speech and the models
    no text. `drafted` and `accepted` count draft tokens by their place in a proposal, the last entry all places from there on.
    """

    steps: int = 0
    progress: int = 0
    llm_passes: int = 0
    generated_tokens: int = 0
    drafted: tuple[int, ...] = (0,) * DRAFT_POSITIONS
    accepted: tuple[int, ...] = (0,) * DRAFT_POSITIONS
    prefix_hits: int = 0
    prefix_misses: int = 0
    encoder_cache_hits: int = 0
    encoder_cache_misses: int = 0
    preemptions: int = 0
    utterances: int = 0
    silent_utterances: int = 0
    partials: int = 0
    restarts: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(**{each.name: _add(getattr(self, each.name), getattr(other, each.name)) for each in fields(self)})


@dataclass(frozen=True)
class EngineStats:
    """A snapshot for metrics and readiness. `step_age_s` is how long the step in progress has run, 0 between steps.

    Live sessions and recordings are not among those waiting and running; `live_jobs` is the work that they have for the models
    right now. An engine that `is_overloaded` would refuse any request, for its predicted wait. `longest_work_s` estimates, from
    the warm-up, how long the largest piece of work takes between two ticks of `counters.progress`.
    """

    ready: bool
    waiting: int
    running: int
    slots: int
    queue_limit: int
    step_age_s: float = 0.0
    predicted_wait_s: float = 0.0
    is_overloaded: bool = False
    prefix_cache_bytes: int = 0
    encoder_cache_bytes: int = 0
    live_sessions: int = 0
    live_limit: int = 0
    recordings: int = 0
    recording_limit: int = 0
    live_jobs: int = 0
    longest_work_s: float = 0.0
    counters: EngineCounters = EngineCounters()


def _add(left: Any, right: Any) -> Any:
    return tuple(map(_add, left, right)) if isinstance(left, tuple) else left + right


@dataclass(frozen=True)
class RouterStats(EngineStats):
    """Stats of several engines that serve as one: each of the `members` by name, and in the other fields all together."""

    members: Mapping[str, EngineStats] = field(default_factory=dict)


def combine_stats(members: Mapping[str, EngineStats]) -> RouterStats:
    """Return the stats of engines, by name, as one: all is summed but `step_age_s`, the longest, `predicted_wait_s`, the
    shortest of those that are ready, and `is_overloaded`, whether all of those are."""
    every = list(members.values())
    ready = [stats for stats in every if stats.ready]
    names = [each.name for each in fields(EngineStats) if each.name not in NOT_SUMMED]
    return RouterStats(
        ready=bool(ready),
        step_age_s=max((stats.step_age_s for stats in every), default=0.0),
        predicted_wait_s=min((stats.predicted_wait_s for stats in ready), default=0.0),
        is_overloaded=bool(ready) and all(stats.is_overloaded for stats in ready),
        counters=sum((stats.counters for stats in every), EngineCounters()),
        members=members,
        **{name: sum(getattr(stats, name) for stats in every) for name in names},
    )
