"""The simulation of one traffic mix: clients and sessions beside an engine, event by event."""

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from loadtest.capacity.costs import StageCosts, StreamProfile, WorkProfile
from loadtest.capacity.engine import RefusedError, SimulatedEngine
from loadtest.capacity.streams import SimulatedStream

# Between the beginnings of sessions, as in `loadtest.live.levels`.
STAGGER_S = 0.7
# All sessions have begun after so long; a hundred of them have moments of their own.
LONGEST_STAGGER_S = 10.0


@dataclass(frozen=True)
class TrafficMix:
    """Closed-loop clients that each send one file after the other, files by a Poisson process, and live sessions side by side.

    A file's work is one of `works`: in turns for closed-loop clients, at random for the others. `arrivals`, if there are any,
    take the place of the Poisson process: the moments of files, and the numbers of their works. Session number n plays
    `streams[n]`, from the first again where there are more sessions.
    """

    name: str
    clients: int = 0
    rate_hz: float = 0.0
    sessions: int = 0
    works: tuple[WorkProfile, ...] = ()
    streams: tuple[StreamProfile, ...] = ()
    arrivals: tuple[tuple[float, int], ...] = ()


@dataclass
class MixOutcome:
    """The figures of one mix within its window: waits for files, waits from the end of live speech to its final, refusals,
    partials, and the engine's share of time in steps."""

    seconds: float
    file_waits_s: list[float] = field(default_factory=list)
    final_waits_s: list[float] = field(default_factory=list)
    refused: int = 0
    partials: int = 0
    utilisation: float = 0.0

    @property
    def files_per_s(self) -> float:
        """Return the files answered per second."""
        return len(self.file_waits_s) / self.seconds


def draw_arrivals(rate_hz: float, works: int, seconds: float, seed: int) -> tuple[tuple[float, int], ...]:
    """Return the moments of a Poisson process, and the number of one of so many works for each."""
    random = np.random.default_rng(seed)
    arrivals = []
    at_s = float(random.exponential(1 / rate_hz))
    while at_s < seconds:
        arrivals.append((at_s, int(random.integers(works))))
        at_s += float(random.exponential(1 / rate_hz))
    return tuple(arrivals)


def simulate_mix(costs: StageCosts, mix: TrafficMix, seconds: float, *, seed: int = 0, warm_up_s: float = 0.0) -> MixOutcome:
    """Simulate a mix; files that are answered within `seconds` after `warm_up_s` count, and all finals of the sessions do."""
    return _Simulation(costs, mix, seconds, seed, warm_up_s).run()


class _Simulation:
    def __init__(self, costs: StageCosts, mix: TrafficMix, seconds: float, seed: int, warm_up_s: float) -> None:
        self._costs, self._mix = costs, mix
        self._begin_s, self._end_s = warm_up_s, warm_up_s + seconds
        self._random = np.random.default_rng(seed)
        self._engine = SimulatedEngine(costs, self._random)
        self._outcome = MixOutcome(seconds)
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._works = itertools.cycle(mix.works)
        self._streams = [
            SimulatedStream(
                mix.streams[number % len(mix.streams)],
                number * STAGGER_S % LONGEST_STAGGER_S,
                f"session {number}",
                self._engine,
                costs,
                self._random,
            )
            for number in range(mix.sessions)
        ]

    def run(self) -> MixOutcome:
        """Simulate until all work is done."""
        for number in range(self._mix.clients):
            self._schedule(0.0, partial(self._ask_on, f"client {number}"))
        for at_s, number in self._mix.arrivals:
            self._schedule(at_s, partial(self._arrive_once, self._mix.works[number]))
        if self._mix.rate_hz and not self._mix.arrivals:
            self._schedule(self._draw_gap_s(), self._arrive)
        now_s = busy_s = 0.0
        while now_s < math.inf:
            self.take_due(now_s)
            if self._engine.has_work:
                began_s, now_s = now_s, self._engine.step(now_s, self)
                busy_s += max(0.0, min(now_s, self._end_s) - max(began_s, self._begin_s))
            else:
                now_s = max(now_s, self.next_due_s)
        self._outcome.final_waits_s = [wait_s for stream in self._streams for wait_s in stream.list_waits_s()]
        self._outcome.partials = sum(stream.partials for stream in self._streams)
        self._outcome.utilisation = busy_s / self._outcome.seconds
        return self._outcome

    @property
    def next_due_s(self) -> float:
        """When something happens next outside of the engine."""
        due_s = self._due[0][0] if self._due else math.inf
        return min([due_s, *(stream.next_due_s for stream in self._streams)])

    def _schedule(self, at_s: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (at_s, next(self._order), action))

    def take_due(self, now_s: float) -> None:
        """Do what is due, files at the time at which they came, and have sessions cut what was heard, as before each step."""
        while self._due and self._due[0][0] <= now_s:
            at_s, _, action = heapq.heappop(self._due)
            action(at_s)
        for stream in self._streams:
            if stream.next_due_s <= now_s:
                stream.take_detected(now_s)

    def _draw_gap_s(self) -> float:
        return float(self._random.exponential(1 / self._mix.rate_hz))

    def _arrive(self, now_s: float) -> None:
        """Send a file of a Poisson process; a refused one does not come again."""
        if now_s >= self._end_s:
            return
        self._schedule(now_s + self._draw_gap_s(), self._arrive)
        self._arrive_once(self._mix.works[int(self._random.integers(len(self._mix.works)))], now_s)

    def _arrive_once(self, work: WorkProfile, now_s: float) -> None:
        self._send(_File(work, now_s, None), now_s)

    def _ask_on(self, client: str, now_s: float) -> None:
        """Send the next file of a closed-loop client."""
        if now_s < self._end_s:
            self._send(_File(next(self._works), now_s, client), now_s)

    def _send(self, file: "_File", now_s: float) -> None:
        self._schedule(now_s + self._costs.door_s / 2, partial(self._submit, file))

    def _submit(self, file: "_File", now_s: float) -> None:
        # One address posts all files, as load generators do.
        try:
            self._engine.submit(file.work, partial(self._end_file, file, now_s), now_s, client="files")
        except RefusedError as refusal:
            self._refuse(file, refusal.retry_after_s, now_s)

    def _end_file(self, file: "_File", submitted_s: float, at_s: float | None) -> None:
        if at_s is None:
            self._refuse(file, 1.0, submitted_s)
            return
        told_s = at_s + self._costs.door_s / 2
        if self._begin_s <= told_s <= self._end_s:
            self._outcome.file_waits_s.append(told_s - file.began_s)
        if file.client is not None:
            self._schedule(told_s, partial(self._ask_on, file.client))

    def _refuse(self, file: "_File", retry_after_s: float, now_s: float) -> None:
        self._outcome.refused += 1
        if file.client is not None and now_s + retry_after_s < self._end_s:
            self._schedule(now_s + retry_after_s, partial(self._send, file))


@dataclass(frozen=True)
class _File:
    """A file under way, since `began_s`; without a `client`, no one sends it again."""

    work: WorkProfile
    began_s: float
    client: str | None


def repeat_profile(profiles: Sequence[StreamProfile], seconds: float, first: int) -> StreamProfile:
    """Return a session at least `seconds` long, made of profiles one after the other, from number `first` on."""
    audio_s = 0.0
    whole = StreamProfile(0.0, (), ())
    for number in itertools.count(first):
        if audio_s >= seconds:
            break
        profile = profiles[number % len(profiles)]
        events = tuple(
            replace(each, at_s=each.at_s + audio_s, start_s=each.start_s + audio_s, end_s=each.end_s + audio_s)
            for each in profile.events
        )
        spoken = tuple((start_s + audio_s, end_s + audio_s) for start_s, end_s in profile.spoken)
        audio_s += profile.audio_s
        whole = StreamProfile(audio_s, whole.events + events, whole.spoken + spoken)
    return whole
