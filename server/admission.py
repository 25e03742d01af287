"""How long a newcomer would wait, from what the work has cost so far. Pure: costs and times are arguments."""

import math
from dataclasses import dataclass, field

from server.errors import DeadlineUnmeetable, Overloaded
from server.scheduler import Backlog

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
class Costs:
    """Measured costs: seconds per mel frame encoded, per position prefilled and per decode step; positions to prefill and
    decode steps per answer."""

    encode_s: Ratio = field(default_factory=Ratio)
    prefill_s: Ratio = field(default_factory=Ratio)
    decode_s: Ratio = field(default_factory=Ratio)
    positions: Ratio = field(default_factory=Ratio)
    decode_steps: Ratio = field(default_factory=Ratio)

    def answer_s(self, mel_frames: int) -> float:
        """Predicted seconds from the start of a request's encoding to its last token."""
        prefill_s = self.positions.value * self.prefill_s.value
        return mel_frames * self.encode_s.value + prefill_s + self.decode_steps.value * self.decode_s.value

    def wait_s(self, backlog: Backlog, slots: int) -> float:
        """Predicted seconds until a newcomer's encoding starts: one stage runs at a time, and `slots` answers side by side."""
        positions = backlog.to_prefill + backlog.unencoded * self.positions.value
        steps = backlog.answers * self.decode_steps.value / slots
        return backlog.mel_frames * self.encode_s.value + positions * self.prefill_s.value + steps * self.decode_s.value


def retry_after_s(wait_s: float) -> int:
    """The `Retry-After` of a refusal: whole seconds, at least one."""
    return max(1, math.ceil(wait_s))


def check_wait(wait_s: float, answer_s: float, deadline_s: float | None, max_queue_wait_s: float | None) -> None:
    """Raises `DeadlineUnmeetable` where an answer would come later than `deadline_s` from now, and `Overloaded` beyond
    `max_queue_wait_s`."""
    if deadline_s is not None and (deadline_s <= 0 or wait_s + answer_s > deadline_s):
        raise DeadlineUnmeetable("The answer would come after the deadline.", retry_after_s=retry_after_s(wait_s))
    if max_queue_wait_s is not None and wait_s > max_queue_wait_s:
        raise Overloaded("The server is busy; try again later.", retry_after_s=retry_after_s(wait_s))
