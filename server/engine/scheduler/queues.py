"""The scheduler's view of a request, and the queues in which requests wait to be encoded. Pure."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.engine.types.options import Priority

# The level before all priorities.
PROMOTED = -1
# How far deadlines may take a client ahead of its share: one of the longest utterances.
DEADLINE_LEAD_AUDIO_S = 30.0


@dataclass(eq=False)
class SchedulerEntry:
    """One request. Times are seconds of the scheduler's clock; `deadline_s` is infinite for none.

    `number` is the order of arrival, `taken` the order in which entries were taken to be encoded. `to_prefill` positions are
    left before the entry can be decoded; the runner writes it, and it is 0 until the prompt is known. `turn_steps` counts the
    decode steps since the entry was given its slot, and `waiting_since_s` is when it began to wait for one. A `promoted` entry
    has waited so long that it goes before all others for one turn. An entry `of_session` takes no place in the queue, nor gives
    one up: sessions are limited themselves. The encoding of an entry that `gives_way` stops for one that goes before it.
    `decoders` are the numbers of those that the entry still has to pass, the next one first; an entry without any is over when it
    is encoded.
    """

    id: str
    client: str = ""
    priority: Priority = Priority.INTERACTIVE
    audio_s: float = 0.0
    waiting_since_s: float = 0.0
    deadline_s: float = float("inf")
    of_session: bool = False
    gives_way: bool = False
    decoders: tuple[int, ...] = (0,)
    number: int = 0
    taken: int = 0
    to_prefill: int = 0
    turn_steps: int = 0
    promoted: bool = False

    @property
    def encode_only(self) -> bool:
        """Whether the entry is over when it is encoded."""
        return not self.decoders

    @property
    def turn(self) -> tuple[float, int]:
        """The place among the entries of a client: earliest deadline first, then first come, first served."""
        return self.deadline_s, self.number

    @property
    def level(self) -> int:
        """The priority, unless the entry is promoted."""
        return PROMOTED if self.promoted else self.priority


def has_claim(client: str, other: str, counts: Mapping[str, int]) -> bool:
    """Return whether a new request of `client` has a claim to a place of `other`, by how many requests each has.

    So it is if that has more than twice what `client` would have with the new one.
    """
    return counts[other] > 2 * (counts[client] + 1)


@dataclass(frozen=True)
class Backlog:
    """The work that comes before a new request.

    `audio_s` seconds in `unencoded` requests are still to be encoded, `to_prefill` positions of others are left to prefill, and
    `answers` have to end before a slot is free.
    """

    audio_s: float = 0.0
    unencoded: int = 0
    to_prefill: int = 0
    answers: int = 0


@dataclass(frozen=True)
class Step:
    """The ids to run in each stage of one step, every id in one stage at most.

    `started` are given slots, which are their places in `Scheduler.in_slots`. `decode` holds, decoder by decoder, requests in
    slot order from slot 0 on; `prefill` says how many positions to run.
    """

    started: list[str] = field(default_factory=list)
    decode: list[str] = field(default_factory=list)
    prefill: list[tuple[str, int]] = field(default_factory=list)
    encode: list[str] = field(default_factory=list)


class ServedAudio:
    """The seconds of audio that clients were served, counted as start-time fair queuing does.

    A client is present while it has entries. Its `start` rises by the audio that it is served, and the clock by an equal share of
    the audio that anyone is served. A client that appears starts at the clock, or at its last `start` if that is later.
    """

    def __init__(self) -> None:
        self._present: Counter[str] = Counter()
        # Clients that are not present are in it as long as they are ahead of the clock.
        self._starts: dict[str, float] = {}
        self._clock = 0.0

    def start_of(self, client: str) -> float:
        """Return the start of a client that is present."""
        return self._starts[client]

    def add_entry(self, client: str) -> None:
        """Note that a client has another entry."""
        if client not in self._present:
            self._starts[client] = max(self._clock, self._starts.get(client, 0.0))
        self._present[client] += 1

    def serve_audio(self, client: str, audio_s: float) -> None:
        """Count audio of a client that is present."""
        self._clock += audio_s / len(self._present)
        self._starts[client] += audio_s

    def remove_entry(self, client: str) -> None:
        """Note that an entry of a client is over. Once no client is present, all begin anew."""
        self._present[client] -= 1
        if not self._present[client]:
            del self._present[client]
            starts = self._starts if self._present else {}
            self._starts = {each: start for each, start in starts.items() if each in self._present or start > self._clock}
        if not self._present:
            self._clock = 0.0

    def leads_s(self) -> dict[str, float]:
        """Return by how much more audio than the least served one each client that is present was served."""
        least = min((self._starts[client] for client in self._present), default=0.0)
        return {client: self._starts[client] - least for client in self._present}


@dataclass(eq=False)
class Flow:
    """One client's waiting entries in the order of their turn, and their audio."""

    entries: list[SchedulerEntry] = field(default_factory=list)
    audio_s: float = 0.0


class FairQueue:
    """Entries of one level that wait to be encoded, shared among clients by start-time fair queuing.

    The client that was served least goes next, as `ServedAudio` counts. So a client gains nothing by idling, nor by how much it
    queues, and no client starves however many others appear. Among the clients within
    `DEADLINE_LEAD_AUDIO_S` of the least served one, the earliest deadline goes first.
    """

    def __init__(self) -> None:
        self._flows: dict[str, Flow] = {}
        self._served = ServedAudio()

    def add_entry(self, entry: SchedulerEntry) -> None:
        """Queue an entry."""
        flow = self._flows.setdefault(entry.client, Flow())
        self._served.add_entry(entry.client)
        insort(flow.entries, entry, key=lambda entry: entry.turn)
        flow.audio_s += entry.audio_s

    def list_heads(self) -> list[SchedulerEntry]:
        """Return the first entry of every client, in the order in which the clients go."""
        limit = min(map(self._served.start_of, self._flows), default=0.0) + DEADLINE_LEAD_AUDIO_S

        def order(head: SchedulerEntry) -> tuple[bool, float, float, int]:
            (deadline_s, number), start = head.turn, self._served.start_of(head.client)
            return start > limit, deadline_s if start <= limit else 0.0, start, number

        return sorted((flow.entries[0] for flow in self._flows.values()), key=order)

    def serve_entry(self, entry: SchedulerEntry) -> None:
        """Remove an entry to serve it, and count its audio as its client's."""
        self._served.serve_audio(entry.client, entry.audio_s)
        self.remove_entry(entry)

    def remove_entry(self, entry: SchedulerEntry) -> None:
        """Remove an entry that is not served."""
        flow = self._flows[entry.client]
        del flow.entries[bisect_left(flow.entries, entry.turn, key=lambda entry: entry.turn)]
        flow.audio_s -= entry.audio_s
        self._served.remove_entry(entry.client)
        if not flow.entries:
            del self._flows[entry.client]

    def count_ahead(self, client: str, audio_s: float) -> tuple[float, int]:
        """Return the audio and the number of entries that are served before a new entry of `client`.

        These are all of its own, and no more of each other client's.
        """
        own = self._flows.get(client, Flow())
        ahead_s, ahead = own.audio_s, len(own.entries)
        for flow in self._flows.values():
            if flow is not own:
                ahead_s += min(flow.audio_s, own.audio_s + audio_s)
                ahead += min(len(flow.entries), len(own.entries) + 1)
        return ahead_s, ahead

    def count_of_client(self, client: str) -> int:
        """Return how many entries of a client wait."""
        return len(self._flows[client].entries) if client in self._flows else 0
