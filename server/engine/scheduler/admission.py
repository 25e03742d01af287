"""How long a newcomer would wait, from what the work has cost so far. Pure: costs and times are arguments."""

import math
from dataclasses import dataclass, field

from server.engine.scheduler.jobs import Backlog
from server.errors import DeadlineUnmeetable, Overloaded

# Weight of the past against a new measurement: about the last 20 count.
DECAY = 0.95


@dataclass
class Ratio:
    """A cost per unit, exponentially weighted; 0 before the first measurement, so that nobody is refused on a guess."""

    cost: float = 0.0
    units: float = 0.0

    def add(self, cost: float, units: float) -> None:
        self.cost = DECAY * self.cost + cost
        self.units = DECAY * self.units + units

    @property
    def value(self) -> float:
        return self.cost / self.units if self.units else 0.0


@dataclass
class Admission:
    """Measured costs, the waits that they predict, and who is refused because of them.

    Costs: seconds per mel frame encoded, per position prefilled and per decode step; positions to prefill and decode steps per
    answer. `slots` answers run side by side. Beyond `max_queue_wait_s` of predicted wait nobody is taken.
    """

    slots: int
    max_queue_wait_s: float | None = None
    encode_s: Ratio = field(default_factory=Ratio)
    prefill_s: Ratio = field(default_factory=Ratio)
    decode_s: Ratio = field(default_factory=Ratio)
    positions: Ratio = field(default_factory=Ratio)
    decode_steps: Ratio = field(default_factory=Ratio)

    def answered(self, positions: int, decode_steps: int) -> None:
        """Take what one answer needed."""
        self.positions.add(positions, 1)
        self.decode_steps.add(decode_steps, 1)

    def answer_s(self, mel_frames: int) -> float:
        """Predicted seconds from the start of a request's encoding to its last token."""
        prefill_s = self.positions.value * self.prefill_s.value
        return mel_frames * self.encode_s.value + prefill_s + self.decode_steps.value * self.decode_s.value

    def wait_s(self, backlog: Backlog) -> float:
        """Predicted seconds until a newcomer's encoding starts: one stage runs at a time."""
        positions = backlog.to_prefill + backlog.unencoded * self.positions.value
        steps = backlog.answers * self.decode_steps.value / self.slots
        return backlog.mel_frames * self.encode_s.value + positions * self.prefill_s.value + steps * self.decode_s.value

    def check(self, backlog: Backlog, mel_frames: int, deadline_s: float | None) -> None:
        """Raises `DeadlineUnmeetable` where an answer would come later than `deadline_s` from now, and `Overloaded` where the
        wait would be too long."""
        wait_s = self.wait_s(backlog)
        if deadline_s is not None and (deadline_s <= 0 or wait_s + self.answer_s(mel_frames) > deadline_s):
            if backlog == Backlog():
                self._doubt()
            raise DeadlineUnmeetable("The answer would come after the deadline.", retry_after_s=retry_after_s(wait_s))
        if self.max_queue_wait_s is not None and wait_s > self.max_queue_wait_s:
            raise overloaded(wait_s)

    def _doubt(self) -> None:
        """Believe the costs a little less: where all are refused nothing is measured, and one slow spell would last for ever."""
        for seconds in (self.encode_s, self.prefill_s, self.decode_s):
            seconds.cost *= DECAY


def retry_after_s(wait_s: float) -> int:
    """The `Retry-After` of a refusal: whole seconds, at least one."""
    return max(1, math.ceil(wait_s))


def overloaded(wait_s: float) -> Overloaded:
    """The refusal of a request that would wait so long."""
    return Overloaded("The server is busy; try again later.", retry_after_s=retry_after_s(wait_s))
