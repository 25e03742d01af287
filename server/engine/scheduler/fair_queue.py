"""Requests of one priority that wait to be encoded, shared fairly among clients by the audio that they bring. Pure."""

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from server.engine.scheduler.jobs import SchedulerEntry

# How far deadlines may take a client ahead of its share: one of the longest utterances.
DEADLINE_LEAD_MEL_FRAMES = 3000


@dataclass(eq=False)
class Flow:
    """One client's waiting jobs in the order of their turn, their mel frames, and its `start` (see `FairQueue`)."""

    start: float
    jobs: list[SchedulerEntry] = field(default_factory=list)
    mel_frames: int = 0


class FairQueue:
    """Start-time fair queuing: the client that was served least goes next.

    Each client's `start` rises by the mel frames it is served; a client that appears starts at the clock, which rises by
    what an equal share of the service is. So nobody gains by idling, nor by how much is queued, and nobody starves however many
    clients appear. Among the clients within `DEADLINE_LEAD_MEL_FRAMES` of the least served one, the earliest deadline goes first.
    """

    def __init__(self) -> None:
        self._flows: dict[str, Flow] = {}
        # Where clients that have nothing queued would go on, as long as that is ahead of the clock.
        self._idle: dict[str, float] = {}
        self._clock = 0.0

    def add(self, job: SchedulerEntry) -> None:
        flow = self._flows.get(job.client)
        if flow is None:
            flow = self._flows[job.client] = Flow(max(self._clock, self._idle.pop(job.client, 0.0)))
        insort(flow.jobs, job, key=lambda job: job.turn)
        flow.mel_frames += job.mel_frames

    def next(self) -> SchedulerEntry | None:
        """The job whose turn it is."""
        flows = self._flows.values()
        if not flows:
            return None
        limit = min(flow.start for flow in flows) + DEADLINE_LEAD_MEL_FRAMES
        ready = ((flow.jobs[0].deadline_s, flow.start, flow.jobs[0].number, flow) for flow in flows if flow.start <= limit)
        return min(ready)[-1].jobs[0]

    def take(self, job: SchedulerEntry) -> None:
        """Remove a job to serve it."""
        self._clock += job.mel_frames / len(self._flows)
        self._flows[job.client].start += job.mel_frames
        self.remove(job)

    def remove(self, job: SchedulerEntry) -> None:
        """Remove a job that is not served."""
        flow = self._flows[job.client]
        del flow.jobs[bisect_left(flow.jobs, job.turn, key=lambda job: job.turn)]
        flow.mel_frames -= job.mel_frames
        if not flow.jobs:
            del self._flows[job.client]
            self._idle[job.client] = flow.start
            self._idle = {client: start for client, start in self._idle.items() if start > self._clock}
        if not self._flows:
            self._idle.clear()
            self._clock = 0.0

    def ahead_of(self, client: str, mel_frames: int) -> tuple[int, int]:
        """Mel frames and requests that are served before a new job of `client`: its own, and no more of each other client's."""
        own = self._flows.get(client, Flow(0.0))
        ahead_mel_frames, ahead = own.mel_frames, len(own.jobs)
        for flow in self._flows.values():
            if flow is not own:
                ahead_mel_frames += min(flow.mel_frames, own.mel_frames + mel_frames)
                ahead += min(len(flow.jobs), len(own.jobs) + 1)
        return ahead_mel_frames, ahead

    def surplus(self, client: str) -> SchedulerEntry | None:
        """The latest job of the client with the most waiting, if it has more than `client` would have with one more.

        Work of sessions does not count.
        """
        flows = {flow_client: [job for job in flow.jobs if not job.of_session] for flow_client, flow in self._flows.items()}
        largest = max(flows.values(), key=len, default=[])
        return max(largest, key=lambda job: job.number) if len(largest) > len(flows.get(client, [])) + 1 else None

    def latest(self) -> SchedulerEntry | None:
        """The job that came last, those of sessions left aside."""
        jobs = (job for flow in self._flows.values() for job in flow.jobs if not job.of_session)
        return max(jobs, key=lambda job: job.number, default=None)
