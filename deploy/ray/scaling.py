"""How many engine replicas there should be, by what new requests would wait. Ray applies the bounds and the delays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# A new request waits longer than this: there are too few replicas.
LONGEST_WAIT_S = 1.0
# Slots, or places for live sessions, that are taken on average: above, there are too few, and so few that one replica less would
# still be below, too many.
MOST_TAKEN_SHARE = 0.8


@dataclass(frozen=True)
class Fleet:
    """The replicas that are wanted: at least `least`, at most `most`, each with so many of Ray's CPUs and GPUs."""

    least: int
    most: int
    cpus: float = 1.0
    gpus: float = 0.0


class ScalingContext(Protocol):
    """The part of `ray.serve.config.AutoscalingContext` that counts here."""

    current_num_replicas: int
    target_num_replicas: int

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None:
        """Return the figures of `EngineReplica.record_autoscaling_stats`, by name and replica."""
        ...


def scale_by_wait(context: ScalingContext) -> tuple[int, dict[str, Any]]:
    """Return the number of replicas wanted, as a policy of Ray Serve."""
    figures = context.aggregated_metrics or {}
    waits_s = list(figures.get("predicted_wait_s", {}).values())
    taken = list(figures.get("taken_share", {}).values())
    return choose_count(context.target_num_replicas, waits_s, taken), {}


def choose_count(count: int, waits_s: Sequence[float], taken_shares: Sequence[float]) -> int:
    """Return how many replicas there should be where there are `count`: one more, one fewer, or as many.

    A new request goes to the replica with the shortest wait. Without figures nothing is changed.
    """
    if not waits_s or not taken_shares:
        return count
    taken = sum(taken_shares)
    if min(waits_s) > LONGEST_WAIT_S or taken > MOST_TAKEN_SHARE * count:
        return count + 1
    if count > 1 and taken < MOST_TAKEN_SHARE * (count - 1) / 2 and max(waits_s) <= LONGEST_WAIT_S:
        return count - 1
    return count
