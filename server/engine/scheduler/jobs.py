"""What the scheduler decides about, and what it says of it."""

from dataclasses import dataclass, field

from server.engine.types.options import Priority

# The level before all priorities.
PROMOTED = -1


@dataclass(eq=False)
class SchedulerEntry:
    """What the scheduler knows of a request. `deadline_s` is a time like `arrived_s`, infinite for none.

    `number` is the order of arrival, `taken` the order in which jobs were taken to be encoded. `to_prefill` positions are left
    before it can be decoded; 0 also while that is not known yet. A `promoted` job waited so long that it goes before all others
    and keeps its slot. One `of_session` takes no place in the queue, nor gives one up: sessions are bounded themselves. One
    that is `encode_only` is over when it is encoded.
    """

    id: str
    client: str
    priority: Priority
    mel_frames: int
    arrived_s: float
    deadline_s: float
    number: int
    of_session: bool = False
    encode_only: bool = False
    taken: int = 0
    to_prefill: int = 0
    promoted: bool = False

    @property
    def turn(self) -> tuple[float, int]:
        """Its place among the requests of its client: earliest deadline first, then first come, first served."""
        return self.deadline_s, self.number

    @property
    def level(self) -> int:
        """Its priority, unless it is promoted."""
        return PROMOTED if self.promoted else self.priority


@dataclass(frozen=True)
class Backlog:
    """What comes before a newcomer: mel frames of requests that are not encoded yet, and their number; positions of others that
    are left to prefill; and answers that have to end before a slot is its own."""

    mel_frames: int = 0
    unencoded: int = 0
    to_prefill: int = 0
    answers: int = 0


@dataclass(frozen=True)
class Step:
    """The ids to run in each stage of one step, every id in one stage at most.

    `started` are given slots, which are their places in `Scheduler.running`. `decode` is in slot order from slot 0 on; `prefill`
    says how many positions to run.
    """

    started: list[str] = field(default_factory=list)
    decode: list[str] = field(default_factory=list)
    prefill: list[tuple[str, int]] = field(default_factory=list)
    encode: list[str] = field(default_factory=list)
