"""Constraints are tried out in a process of their own before an engine meets them, so that a hostile one holds up nobody.

A schema of a few thousand characters can keep the library busy for minutes, and then nothing stops it but the end of its process.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process

from cachetools import LRUCache

from server.engine.types.options import Constraint
from server.errors import InvalidConstraint, NotReady

logger = logging.getLogger(__name__)

# Beyond the child's own limit, which counts processor time.
TIMEOUT_S = 10.0
START_TIMEOUT_S = 60.0
KEPT_VERDICTS = 64


class GrammarSandbox:
    """Tries out one constraint at a time. Belongs to one event loop; `close` after use.

    The child starts with the first trial, and anew after each that it did not survive.
    """

    def __init__(self) -> None:
        self._verdicts: LRUCache[Constraint, str | None] = LRUCache(KEPT_VERDICTS)
        self._turn = asyncio.Lock()
        self._process: Process | None = None

    async def check(self, constraint: Constraint, client: str = "") -> None:  # noqa: ARG002
        """Raises `InvalidConstraint` for one that cannot be compiled, or not in a moment; `NotReady` where no child starts."""
        if constraint not in self._verdicts:
            async with self._turn:
                if constraint not in self._verdicts:
                    self._verdicts[constraint] = await self._try(constraint)
        verdict = self._verdicts[constraint]
        if verdict is not None:
            raise InvalidConstraint.because(constraint.kind, verdict)

    async def close(self) -> None:
        """Leave no child behind."""
        process, self._process = self._process, None
        if process is not None:
            await _end(process)

    async def _try(self, constraint: Constraint) -> str | None:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await _start()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await _ask(process, constraint)
        except (TimeoutError, OSError, EOFError):
            logger.warning("a %s of %d characters could not be compiled", constraint.kind, len(constraint.grammar))
            await self.close()
            return "it is too complex"
        except asyncio.CancelledError:
            # Its verdict would be taken for that on the next one.
            await self.close()
            raise


async def _start() -> Process:
    # The child gets the import path and nothing else of the environment.
    environment = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "server.constraints.worker"]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await _verdict(process)
    except asyncio.CancelledError:
        await _end(process)
        raise
    except (TimeoutError, EOFError):
        await _end(process)
        raise NotReady("Constraints cannot be tried out now; try again soon.", retry_after_s=5) from None
    return process


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def _ask(process: Process, constraint: Constraint) -> str | None:
    if process.stdin is None:
        raise EOFError
    process.stdin.write(json.dumps([constraint.kind, constraint.grammar]).encode() + b"\n")
    await process.stdin.drain()
    return await _verdict(process)


async def _verdict(process: Process) -> str | None:
    """The child's next line. Raises `EOFError` once it is dead."""
    line = await process.stdout.readline() if process.stdout is not None else b""
    if not line.endswith(b"\n"):
        raise EOFError
    verdict: str | None = json.loads(line)
    return verdict
