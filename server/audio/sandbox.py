"""Audio decoding in warm child processes, so that hostile bytes can neither crash, hang nor exhaust the server.

Each open file or stream has a child of its own while it is open. A child that dies or exceeds its time is killed and replaced,
and its request is answered as undecodable. There is no in-process fallback: with no child alive, requests wait for one and then
fail.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np

from server.audio.child import START_TIMEOUT_S, DecodeChild, WorkerError
from server.audio.decode import AudioLimits, Samples
from server.audio.worker import END
from server.errors import NotReady, Overloaded, ServeError, UndecodableAudio

logger = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0

Result = TypeVar("Result")


class DecodePool:
    """`workers` decode processes for files that are decoded at once, and others for what takes longer.

    A file that is not at its end after its first read, or a live stream, keeps its child, and another takes that one's place;
    up to `max_streams` may be kept, and up to `max_waiting` callers may wait for a child. `timeout_s` is what one read may take.
    Belongs to one event loop; `start` before use, `close` after.
    """

    def __init__(
        self, workers: int, limits: AudioLimits, *, timeout_s: float, memory_bytes: int, max_waiting: int, max_streams: int
    ) -> None:
        self.limits = limits
        self.restarts = 0
        self._workers = workers
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._max_waiting = max_waiting
        self._max_streams = max_streams
        self._waiting = 0
        self._starting = 0
        self._kept = 0
        self._idle: asyncio.LifoQueue[DecodeChild] = asyncio.LifoQueue()
        self._children: set[DecodeChild] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        # Of those, the ones that `close` waits for and does not cancel: a child whose end is not awaited stays a zombie.
        self._endings: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def process_ids(self) -> set[int]:
        """The children that live now."""
        return {child.process_id for child in self._children}

    async def start(self) -> None:
        """Start the children and wait until each is warm. Raises `WorkerError` where one cannot run here."""
        try:
            await asyncio.gather(*(self._start_child() for _ in range(self._workers)))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Kill the children; nothing may be decoded afterwards."""
        self._closed = True
        for task in self._tasks - self._endings:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(child.kill() for child in self._children))
        self._children.clear()

    async def lease(self, client: str = "") -> "Lease":  # noqa: ARG002
        """Wait for a child to open something in, for `client`. Raises `Overloaded`, or `NotReady` with no child."""
        return Lease(self, await self._take())

    async def _take(self) -> DecodeChild:
        if self._waiting >= self._max_waiting:
            raise Overloaded("Too many requests are waiting for their audio to be decoded; try again soon.", retry_after_s=1)
        self._waiting += 1
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                return await self._idle.get()
        except TimeoutError:
            raise NotReady("No audio decoder is available; try again soon.", retry_after_s=5) from None
        finally:
            self._waiting -= 1

    def keep(self) -> None:
        """Let a child be kept, and start another in its place. Raises `Overloaded`."""
        if self._kept >= self._max_streams:
            raise Overloaded("Too many recordings and streams are being decoded; try again later.", retry_after_s=5)
        self._kept += 1
        self._fill_up()

    def give_back(self, child: DecodeChild, was_kept: bool) -> None:
        """Take a child that nothing is open in any more."""
        self._kept -= was_kept
        # Some more than are needed, so that streams that come and go need not each wait for a start.
        if len(self._children) - self._kept > 2 * self._workers:
            self._end(child)
        else:
            self._idle.put_nowait(child)

    def replace(self, broken: DecodeChild, was_kept: bool) -> None:
        """Kill a child that cannot be used any more."""
        self.restarts += 1
        self._kept -= was_kept
        self._end(broken)
        self._fill_up()

    def track(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run a task that goes on when its caller leaves, until `close`."""
        task = asyncio.create_task(work)
        # The loop holds tasks weakly, so somebody has to hold them.
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _end(self, child: DecodeChild) -> None:
        self._children.discard(child)
        ending = self.track(child.kill())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # An error that nobody waits for any more has been looked at here.
        if not task.cancelled():
            task.exception()

    def _fill_up(self) -> None:
        while not self._closed and len(self._children) + self._starting - self._kept < self._workers:
            self._starting += 1
            self.track(self._start_in_background())

    async def _start_in_background(self) -> None:
        try:
            while True:
                try:
                    return await self._start_child()
                except (WorkerError, OSError):
                    logger.exception("A decode process could not be started; trying again.")
                    await asyncio.sleep(RESTART_PAUSE_S)
        finally:
            self._starting -= 1

    async def _start_child(self) -> None:
        child = await DecodeChild.start(self._memory_bytes, self._timeout_s)
        self._children.add(child)
        self._idle.put_nowait(child)


class Lease:
    """A child, to open one file or stream in. It goes back after the last read or `close`, whereupon this is `over`."""

    def __init__(self, pool: DecodePool, child: DecodeChild) -> None:
        self.child = child
        self.over = False
        self._pool = pool
        self._kept = self._is_back = False
        self._reading: asyncio.Task[tuple[int, Samples]] | None = None

    def keep(self) -> None:
        """Say that this takes longer than one read. Raises `Overloaded`, and gives the child back."""
        if self.over or self._kept:
            return
        try:
            self._pool.keep()
        except Overloaded:
            self.close()
            raise
        self._kept = True

    @property
    def is_reading(self) -> bool:
        """Whether the caller of a `read` has left. The next one gets its samples."""
        return self._reading is not None

    async def read(self, count: int) -> tuple[int, Samples]:
        """As `DecodeChild.read`, but what breaks the child is undecodable audio, and after the end there is nothing more."""
        if self._reading is None:
            if self.over:
                return END, np.zeros(0, np.float32)
            # A client that leaves must not cost a child: this is short and bounded, and goes on to its end.
            self._reading = self._pool.track(self._read(count))
        try:
            answer = await asyncio.shield(self._reading)
        except ServeError:
            self._reading = None
            raise
        self._reading = None
        return answer

    async def _read(self, count: int) -> tuple[int, Samples]:
        try:
            status, samples = await self.child.read(count)
        except WorkerError as error:
            self.over = self._is_back = True
            self._pool.replace(self.child, self._kept)
            logger.warning("A decode process was replaced: %s", error)
            raise UndecodableAudio("The audio could not be decoded: its decoder failed on it.", param="audio") from None
        except ServeError:
            self._give_back()
            raise
        if status == END:
            self._give_back()
        return status, samples

    def close(self) -> None:
        """Give the child back, as soon as it has answered what it was asked."""
        if not self.over:
            self.over = True
            self._pool.track(self._close())

    async def _close(self) -> None:
        if self._reading is not None:
            await asyncio.wait([self._reading])
        if not self._is_back:
            self.child.close()
            self._give_back()

    def _give_back(self) -> None:
        self.over = self._is_back = True
        self._pool.give_back(self.child, self._kept)
