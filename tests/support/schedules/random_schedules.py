"""Random schedules for an engine: requests that come while others run, leave early, are late, or fail."""

import gc
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random

from server.engine.engine import LocalEngine
from server.engine.runner.sequence import SequenceState
from server.engine.types.events import Delta, Done, Event
from server.engine.types.options import Constraint, DraftPolicy, Priority
from server.engine.types.requests import InstructRequest
from server.errors import DeadlineUnmeetable, EngineFailed, Overloaded, RequestTimedOut, ServeError
from tests.support.clients.engine_call import TIMEOUT_S
from tests.support.clients.engine_client import instruct, without_times
from tests.support.fakes.fake_models import Trouble, silence, speech
from tests.support.tasks import change_task

ASKED = 40
LEFT = "left"
SCHEMA = (
    '{"type": "object", "properties": {"drink": {"enum": ["tea", "coffee"]}, "words": {"type": "string"}}, "required": ["words"]}'
)
CONSTRAINTS = [Constraint("json_schema", SCHEMA), Constraint("regex", "[89]{3,30}[a-z ]*"), Constraint("choice", '["yes", "no"]')]


def random_requests() -> list[InstructRequest]:
    """Requests that differ in everything which an answer may depend on."""
    random = Random(0)
    requests = []
    for index in range(ASKED):
        request = instruct(
            f"alone {index}",
            silence() if index == 0 else speech(index, duration_s=random.uniform(0.3, 3.0)),
            f"Instruction {index % 3}",
            max_tokens=random.randint(1, 40),
            temperature=random.choice([0.0, 0.0, 0.7, 1.2]),
            top_k=random.choice([0, 5]),
            repetition_penalty=random.choice([1.0, 1.2]),
            logprobs=random.choice([None, 2]),
            seed=index,
            constraint=random.choice([None, None, None, *CONSTRAINTS]),
        )
        policies: list[DraftPolicy] = ["exact", "exact", "off", "exact" if request.task.sampling.constraint else "relaxed"]
        requests.append(change_task(request, draft=random.choice(policies)))
    return requests


def without_id(done: Done) -> tuple[object, ...]:
    """Return the parts of an answer that must not depend on how a request was run."""
    return without_times(done)[1:]


@dataclass(frozen=True)
class Arrival:
    """A request that comes after so many events of the schedule, and whose client leaves after so many of its own."""

    request: InstructRequest
    after: int
    leave_after: int | None
    index: int
    trouble: Trouble | None


def random_arrivals(random: Random, name: str, asked: Sequence[InstructRequest], troubles: Sequence[Trouble]) -> list[Arrival]:
    """Some of `asked`, under other names, of several clients; about a tenth of them with one of the troubles."""
    count = random.randint(4, 14)
    arrivals = []
    for number in range(count):
        index = random.randrange(len(asked))
        trouble = random.choice(troubles) if troubles and random.random() < 0.1 else None
        request = replace(
            asked[index],
            id=f"{name} request {number}",
            client=random.choice("abc"),
            priority=random.choice(list(Priority)),
            deadline_s=random.choice([0.001, 0.01, 0.1]) if random.random() < 0.1 else None,
        )
        if trouble is not None:
            request = change_task(replace(request, audio=speech(index, 0.5, trouble)), draft="off")
        leave_after = random.randint(0, 6) if random.random() < 0.15 else None
        arrivals.append(Arrival(request, random.randint(0, count * 3), leave_after, index, trouble))
    return sorted(arrivals, key=lambda arrival: arrival.after)


class Schedule:
    """Submits as events come in, from within their delivery: so the order does not depend on the speed of threads."""

    def __init__(self, engine: LocalEngine, arrivals: Sequence[Arrival]) -> None:
        self.outcomes: dict[str, Done | ServeError | str] = {}
        self.texts: dict[str, str] = {}
        self._engine = engine
        self._arrivals = {arrival.request.id: arrival for arrival in arrivals}
        self._later = deque(arrival for arrival in arrivals if arrival.after)
        self._counts = dict.fromkeys(self._arrivals, 0)
        self._submitted = 0
        self._ended = threading.Event()

    def run(self) -> None:
        first = [arrival for arrival in self._arrivals.values() if arrival not in self._later] or [self._later.popleft()]
        self._submitted = len(first)
        for arrival in first:
            self._submit(arrival)
        # If all of them were refused or left, no event brings the next one.
        with self._engine._changed:
            self._go_on()
        assert self._ended.wait(TIMEOUT_S), f"{self._arrivals.keys() - self.outcomes.keys()} never ended"

    def _submit(self, arrival: Arrival) -> None:
        id = arrival.request.id
        try:
            self._engine.submit(arrival.request, self._receive)
        except ServeError as refusal:
            self._end(id, refusal)
        else:
            if arrival.leave_after == 0:
                self._engine.abort(id)
                self._end(id, LEFT)

    def _receive(self, event: Event) -> None:
        id = event.request_id
        assert id not in self.outcomes, f"an event after the end: {event}"
        self._counts[id] += 1
        if isinstance(event, Delta):
            self.texts[id] = self.texts.get(id, "") + event.text
            if self._counts[id] == self._arrivals[id].leave_after:
                self._engine.abort(id)
                self._end(id, LEFT)
        else:
            self._end(id, event if isinstance(event, Done) else event.error)
        self._go_on()

    def _end(self, id: str, outcome: Done | ServeError | str) -> None:
        assert id not in self.outcomes
        self.outcomes[id] = outcome
        if len(self.outcomes) == len(self._arrivals):
            self._ended.set()

    def _go_on(self) -> None:
        events = sum(self._counts.values())
        while self._later and (self._later[0].after <= events or len(self.outcomes) == self._submitted):
            self._submitted += 1
            self._submit(self._later.popleft())


def check(arrival: Arrival, outcome: Done | ServeError | str, text: str, alone: tuple[object, ...]) -> None:
    """That an outcome is one that may be: the answer is `alone` unless the request had trouble, `text` is its deltas joined."""
    allowed: tuple[type[ServeError], ...] = (Overloaded,)
    if arrival.request.deadline_s is not None:
        allowed += (DeadlineUnmeetable, RequestTimedOut)
    if arrival.trouble is not None:
        allowed += (EngineFailed,)
    if isinstance(outcome, ServeError):
        assert isinstance(outcome, allowed)
    elif isinstance(outcome, Done):
        assert outcome.text == text
        assert arrival.trouble is not None or without_id(outcome) == alone
    else:
        assert arrival.leave_after is not None


def play_schedules(
    engine: LocalEngine,
    random: Random,
    schedules: int,
    asked: Sequence[InstructRequest],
    alone: Sequence[tuple[object, ...]],
    troubles: Sequence[Trouble] = (),
) -> int:
    """Play random schedules of `asked` and check every outcome against `alone`, what `without_id` gives of each alone; how many
    were answered."""
    answered = 0
    for number in range(schedules):
        arrivals = random_arrivals(random, f"schedule {number}", asked, troubles)
        schedule = Schedule(engine, arrivals)
        schedule.run()
        for arrival in arrivals:
            outcome = schedule.outcomes[arrival.request.id]
            check(arrival, outcome, schedule.texts.get(arrival.request.id, ""), alone[arrival.index])
            answered += isinstance(outcome, Done)
    return answered


def random_budgets(random: Random) -> dict[str, float]:
    """Of an engine: from one request and a few positions a step to all that there are."""
    return {"encode_budget_audio_s": random.choice([0.01, 3.0, 10.0]), "step_tokens": random.choice([12, 30, 256])}


def sequences_left() -> list[object]:
    """Requests that something still holds."""
    gc.collect()
    return [left for left in gc.get_objects() if type(left) is SequenceState]


@contextmanager
def without_logs() -> Iterator[None]:
    """Log records hold tracebacks, whose frames hold requests."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
