"""Constraints are compiled in child processes before an engine gets them, so that a hostile one delays no other request.

A schema of a few thousand characters can keep the library busy for minutes, and only the end of its process stops it.
"""

import json
import logging

from cachetools import LRUCache

from server.child_process import ChildFailed, ChildProcess
from server.engine.types.options import Constraint
from server.errors import InvalidConstraint, NotReady
from server.fair_semaphore import FairSemaphore

logger = logging.getLogger(__name__)

# The child's own limit counts CPU time and is far below.
TIMEOUT_S = 10.0
WORKERS = 2
MAX_WAITING = 64
# As many as an engine keeps grammars: another one is compiled there too, and is paid for here.
KEPT_VERDICTS = 16
# A client rests for this multiple of the CPU time that its constraint took: all of its take at most a tenth of a core here,
# and as much in the engine.
REST_PER_CPU_TIME = 9.0
# The CPU time charged for a constraint that a child did not survive: a little more than `worker.MAX_CPU_S`.
LOST_CPU_S = 0.5

# The fault of a constraint, or None, and the CPU time that it took to find out.
Verdict = tuple[str | None, float]


class GrammarSandbox:
    """Compiles constraints in `workers` child processes, for which clients wait in turn (`FairSemaphore`).

    A client whose constraints took long waits the longer for the next, so that it takes no time from others. A child starts when
    it is needed, and anew after each constraint that it did not survive. Belongs to one event loop; `close` after use.
    """

    def __init__(self, workers: int = WORKERS, max_waiting: int = MAX_WAITING) -> None:
        # The fault of a constraint; None if it compiles.
        self._verdicts: LRUCache[Constraint, str | None] = LRUCache(KEPT_VERDICTS)
        self._places = FairSemaphore(workers, max_waiting, "Too many constraints are waiting to be checked; try again soon.")
        self._idle: list[ChildProcess] = []

    async def check(self, constraint: Constraint, client: str = "") -> None:
        """Compile a constraint for `client`.

        Raises `InvalidConstraint` for one that cannot be compiled, or takes too much CPU time or memory; `Overloaded` where too
        many wait; and `NotReady` where no child starts, or two ended for another reason.
        """
        if constraint not in self._verdicts:
            async with self._places.place(client):
                if constraint not in self._verdicts:
                    self._verdicts[constraint], cpu_s = await self._compile(constraint)
                    self._places.rest(client, REST_PER_CPU_TIME * cpu_s)
        verdict = self._verdicts[constraint]
        if verdict is not None:
            raise InvalidConstraint.because(constraint.kind, verdict)

    async def close(self) -> None:
        """End the children. No `check` may be going on."""
        for child in self._idle:
            child.kill()
            await child.wait()
        self._idle.clear()

    async def _compile(self, constraint: Constraint) -> Verdict:
        """Return the verdict on a constraint. A child that is lost says nothing about it, so a fresh one tries again."""
        try:
            verdict = await self._ask(self._idle.pop(), constraint) if self._idle else await self._ask_fresh(constraint)
        except ChildFailed:
            try:
                verdict = await self._ask_fresh(constraint)
            except ChildFailed:
                raise NotReady("The constraint cannot be checked now; try again soon.", retry_after_s=5) from None
        return verdict

    async def _ask_fresh(self, constraint: Constraint) -> Verdict:
        return await self._ask(await ChildProcess.start("server.constraints.worker"), constraint)

    async def _ask(self, child: ChildProcess, constraint: Constraint) -> Verdict:
        """Return the verdict of a child, which is idle again or ended afterwards. Raises `ChildFailed` where it was lost."""
        try:
            child.write(json.dumps([constraint.kind, constraint.grammar]).encode() + b"\n")
            problem, cpu_s = json.loads(await child.read_line(TIMEOUT_S))
        except BaseException as error:
            child.kill()
            ending = await child.wait()
            if not isinstance(error, ChildFailed):
                raise
            logger.warning("A %s of %d characters was not compiled: %s.", constraint.kind, len(constraint.grammar), ending)
            if child.reached_cpu_limit or child.crashed:
                return "it is too complex", LOST_CPU_S
            raise
        self._idle.append(child)
        return problem, cpu_s
