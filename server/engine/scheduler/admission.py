"""How long a new request would wait, from what the work has cost so far. Pure: costs and times are arguments."""

import math
from dataclasses import dataclass, field

from server.engine.scheduler.queues import Backlog
from server.errors import DeadlineUnmeetable, Overloaded

# Weight of the past against a new measurement: about the last 20 count.
DECAY = 0.95
# The costs are believed less once in this time at most, however many requests are refused.
DOUBT_INTERVAL_S = 1.0


@dataclass
class Ratio:
    """A cost per unit, exponentially weighted; 0 before the first measurement, so that no request is refused on a guess."""

    cost: float = 0.0
    units: float = 0.0

    def add_measurement(self, cost: float, units: float) -> None:
        """Add the cost of `units` units."""
        self.cost = DECAY * self.cost + cost
        self.units = DECAY * self.units + units

    @property
    def value(self) -> float:
        return self.cost / self.units if self.units else 0.0


@dataclass
class Admission:
    """Measured costs, the waits that they predict, and the requests that are refused because of them.

    Costs: seconds per second of audio encoded, per position prefilled and per decode step; positions to prefill and decode steps
    per answer. `slots` answers run side by side. A request that would wait for more than `max_queue_wait_s` is refused, and so
    is one that has to wait and would be answered later than `request_timeout_s` from now. None means no limit.
    """

    slots: int
    max_queue_wait_s: float | None = None
    request_timeout_s: float | None = None
    encode_s: Ratio = field(default_factory=Ratio)
    prefill_s: Ratio = field(default_factory=Ratio)
    decode_s: Ratio = field(default_factory=Ratio)
    positions: Ratio = field(default_factory=Ratio)
    decode_steps: Ratio = field(default_factory=Ratio)
    doubted_at_s: float = -math.inf

    def record_answer(self, positions: int, decode_steps: int) -> None:
        """Add what one answer needed."""
        self.positions.add_measurement(positions, 1)
        self.decode_steps.add_measurement(decode_steps, 1)

    def predict_answer_s(self, audio_s: float) -> float:
        """Return the predicted seconds from the start of a request's encoding to its last token."""
        prefill_s = self.positions.value * self.prefill_s.value
        return audio_s * self.encode_s.value + prefill_s + self.decode_steps.value * self.decode_s.value

    def predict_wait_s(self, backlog: Backlog) -> float:
        """Return the predicted seconds until a new request's encoding starts: one stage runs at a time."""
        positions = backlog.to_prefill + backlog.unencoded * self.positions.value
        steps = backlog.answers * self.decode_steps.value / self.slots
        return backlog.audio_s * self.encode_s.value + positions * self.prefill_s.value + steps * self.decode_s.value

    def exceeds_limits(self, backlog: Backlog, audio_s: float) -> bool:
        """Return whether a new request would wait too long, or would have to wait and be answered too late."""
        wait_s = self.predict_wait_s(backlog)
        if self.max_queue_wait_s is not None and wait_s > self.max_queue_wait_s:
            return True
        answered_s = wait_s + self.predict_answer_s(audio_s)
        return self.request_timeout_s is not None and wait_s > 0 and answered_s > self.request_timeout_s

    def check_request(self, backlog: Backlog, audio_s: float, deadline_s: float | None, now_s: float) -> None:
        """Refuse a request that would be answered too late.

        Raises `DeadlineUnmeetable` if the answer would come later than `deadline_s` from now, and `Overloaded` if the wait would
        be too long.
        """
        wait_s = self.predict_wait_s(backlog)
        total_s = wait_s + self.predict_answer_s(audio_s)
        if deadline_s is not None and (deadline_s <= 0 or total_s > deadline_s):
            if backlog == Backlog():
                self._doubt_costs(now_s)
            raise DeadlineUnmeetable("The answer would come after the deadline.", retry_after_s=retry_after_s(wait_s))
        if self.exceeds_limits(backlog, audio_s):
            raise overloaded(wait_s)

    def _doubt_costs(self, now_s: float) -> None:
        """Decay the cost estimates.

        If every request is refused nothing is measured, and one slow spell would block the server for ever. A flood of requests
        that cannot be met counts as one, so that it does not talk the estimates down.
        """
        if now_s - self.doubted_at_s < DOUBT_INTERVAL_S:
            return
        self.doubted_at_s = now_s
        for seconds in (self.encode_s, self.prefill_s, self.decode_s):
            seconds.cost *= DECAY


def retry_after_s(wait_s: float) -> int:
    """Return the `Retry-After` of a refusal: whole seconds, at least one."""
    return max(1, math.ceil(wait_s))


def overloaded(wait_s: float) -> Overloaded:
    """Return the refusal of a request that would wait for `wait_s`."""
    return Overloaded("The server is busy; try again later.", retry_after_s=retry_after_s(wait_s))
