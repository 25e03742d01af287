"""The choice of a replica for each request: the one with the fewest under way, and for a session always the same.

Reports are asked of all replicas in turn, and a replica that owes some gets nothing new.

Serve copies this module into each of its processes, so the router holds all of its state itself.
"""

import time
from collections import Counter

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deploy.ray.replica import REPORTS

MOST_REPORTS_OWED = 2
# Longer than an edge waits for a report: one whose end was not told is forgotten.
LONGEST_OWED_S = 10.0


class SessionRouter(RequestRouter):
    """Routes by load, and by session where a call names one.

    A replica that owes more than `MOST_REPORTS_OWED` reports may be on a machine that is gone without a word, which Ray takes
    long to notice: new calls go to others, if there are any.

    The first call of a session opens it, and lasts as long as the session does. All later calls go to the replica that took the
    first one, also while that replica is being drained and gets nothing new.
    """

    def initialize_state(self, **_kwargs: object) -> None:
        """Begin without sessions; Serve calls this before anything else."""
        self._replica_of: dict[str, ReplicaID] = {}
        self._opened_by: dict[str, str] = {}
        self._drained: set[ReplicaID] = set()
        self._reports_owed: dict[str, tuple[ReplicaID, float]] = {}
        self._turn = 0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the session's replica, or those among which Serve takes the one with the fewest calls under way."""
        if pending_request is not None:
            # Without this, Serve asks again at once where no replica has room.
            pending_request.routing_context.should_backoff = True
            if pending_request.metadata.session_id == REPORTS:
                return [[self._ask_for_report(pending_request.metadata.internal_request_id)]]
            replica_id = self._replica_of.get(pending_request.metadata.session_id)
            if replica_id in self.curr_replicas:
                return [[self.curr_replicas[replica_id]]]
        serving = [replica for replica in candidate_replicas if replica.replica_id not in self._drained]
        owed = Counter(replica_id for replica_id, _ in self._reports_owed.values())
        return [[replica for replica in serving if owed[replica.replica_id] <= MOST_REPORTS_OWED] or serving]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:  # noqa: ARG002
        """Note where a session was opened."""
        metadata = pending_request.metadata
        if metadata.session_id == REPORTS:
            return
        if metadata.session_id and metadata.session_id not in self._replica_of:
            self._replica_of[metadata.session_id] = replica_id
            self._opened_by[metadata.internal_request_id] = metadata.session_id

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:  # noqa: ARG002
        """Forget a report that has come, and a session whose first call has ended."""
        self._reports_owed.pop(internal_request_id, None)
        if session_id := self._opened_by.pop(internal_request_id, None):
            del self._replica_of[session_id]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas that serve now, and keep those that are drained as long as they have sessions."""
        serving = {replica.replica_id for replica in replicas}
        holding = set(self._replica_of.values())
        drained = [each for id, each in self.curr_replicas.items() if id not in serving and id in holding]
        self._drained = {replica.replica_id for replica in drained}
        super().update_replicas([*replicas, *drained])

    def _ask_for_report(self, internal_request_id: str) -> RunningReplica:
        """Return the replica whose turn it is. It owes the report from now on: one on a lost machine does not even accept."""
        now_s = time.monotonic()
        kept = {id: each for id, each in self._reports_owed.items() if now_s - each[1] < LONGEST_OWED_S}
        self._turn += 1
        replicas = list(self.curr_replicas.values())
        replica = replicas[self._turn % len(replicas)]
        self._reports_owed = {**kept, internal_request_id: (replica.replica_id, now_s)}
        return replica
