"""The `Engine` of an edge: requests go to engine replicas of Ray Serve, events come back."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from deploy.ray.frames import read_frame, write_frame
from deploy.ray.replica import REPORTS
from models.bundle.schema import Manifest
from server.engine.ipc.client import StartError
from server.engine.types.events import Done, Ended, Event, Failed, LiveEvent
from server.engine.types.options import Priority
from server.engine.types.requests import EndOfAudio, InstructRequest, LiveInput, LiveRequest
from server.engine.types.stats import EngineCounters, EngineStats, RouterStats, combine_stats
from server.errors import EngineFailed, InvalidRequest, NotReady, ServeError

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
REPORT_INTERVAL_S = 0.5
REPORT_TIMEOUT_S = 5.0
# A replica that has not reported for so long is not counted any more,
LONGEST_SILENCE_S = 3.0
# and after so long its requests and sessions are lost: its machine may be gone without a word.
LOST_AFTER_S = 10.0
START_TIMEOUT_S = 600.0


@dataclass(eq=False)
class _Call:
    """A request or session at a replica. Ids may come again after an abort, calls do not."""

    id: str
    deliver: Callable[[Any], None]
    inputs: asyncio.Queue[bytes]
    is_live: bool
    # The replica that took it, and when by the watch's clock.
    replica: str | None = None
    taken_s: float = 0.0
    task: Future[None] | None = None
    pump: asyncio.Task[None] | None = None


@dataclass
class _Report:
    """A replica's last stats, and when they came by the watch's clock."""

    stats: EngineStats
    at_s: float


class RayEngine:
    """The `Engine` protocol over a deployment of `EngineReplica`s.

    Serve sends each request to the replica with the fewest under way (`SessionRouter`), and a session's inputs to the replica
    that has the session. If a replica dies, its requests get `Failed` with `EngineFailed` as soon as Ray reports it, and new
    ones go to the others; Serve replaces it. So do those of a replica that is silent for `LOST_AFTER_S`, which Ray may report a
    minute later. A replica that Serve takes away finishes its requests and sessions first.

    Events are delivered under one lock, on a thread of this object: none follows a terminal event or a call of `abort`. `stats`
    are the replicas' last reports, and hold the requests of all edges.
    """

    def __init__(self, handle: Any, manifest: Manifest) -> None:
        """`handle` is the deployment's."""
        self.model_name = manifest.name
        self.sample_rate_hz = manifest.sample_rate_hz
        self.max_audio_s = manifest.max_audio_s
        self.transcribes = manifest.transcribes
        self._handle = handle
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ray-engine", daemon=True)
        # Guards everything below.
        self._changed = threading.Condition()
        self._calls: dict[str, _Call] = {}
        self._reports: dict[str, _Report] = {}
        # Seconds for which replicas were watched: a machine that stood still does not make them silent.
        self._watched_s = 0.0
        self._past_counters = EngineCounters()
        self._draining = False
        self._watch: Future[None] | None = None

    def start(self) -> None:
        """Return when a replica is ready. Raises `StartError` if none becomes so."""
        self._thread.start()
        self._watch = self._run(self._watch_replicas())
        with self._changed:
            if not self._changed.wait_for(lambda: self._ready or self._draining, START_TIMEOUT_S):
                raise StartError("No engine replica has become ready.")

    def check_room(self, client: str, priority: Priority) -> None:
        """Refuse nothing: the replicas know the requests of all edges."""

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        self._begin(request, deliver)

    def open_live(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        self._begin(request, deliver)

    def push(self, request_id: str, item: LiveInput) -> None:
        frame = write_frame(item)
        with self._changed:
            if call := self._calls.get(request_id):
                self._loop.call_soon_threadsafe(call.inputs.put_nowait, frame)

    def abort(self, request_id: str) -> None:
        with self._changed:
            call = self._calls.pop(request_id, None)
            self._changed.notify_all()
        if call is not None and call.task is not None:
            call.task.cancel()

    def stats(self) -> RouterStats:
        with self._changed:
            combined = combine_stats({id: report.stats for id, report in self._counted.items()})
            counters = sum((report.stats.counters for report in self._reports.values()), self._past_counters)
            return replace(combined, ready=self._ready, counters=counters)

    def drain(self, timeout_s: float) -> None:
        with self._changed:
            self._draining = True
            sessions = [id for id, call in self._calls.items() if call.is_live]
            self._changed.notify_all()
        for id in sessions:
            self.push(id, EndOfAudio())
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, timeout_s)
            left, self._calls = self._calls, {}
            for call in left.values():
                self._tell(call, Failed(call.id, NotReady("The server is shutting down.")))
                if call.task is not None:
                    call.task.cancel()
        if self._thread.is_alive():
            self._run(self._stop()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def _ready(self) -> bool:
        return not self._draining and any(report.stats.ready for report in self._counted.values())

    @property
    def _counted(self) -> dict[str, _Report]:
        """The reports of the replicas that are not silent, by replica."""
        oldest_s = self._watched_s - LONGEST_SILENCE_S
        return {id: report for id, report in self._reports.items() if report.at_s >= oldest_s}

    def _run(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _begin(self, request: InstructRequest | LiveRequest, deliver: Callable[[Any], None]) -> None:
        frame = write_frame(request)
        with self._changed:
            call = _Call(request.id, deliver, asyncio.Queue(), isinstance(request, LiveRequest))
            if not self._ready:
                raise NotReady("The server is not ready to take requests.", retry_after_s=RETRY_AFTER_S)
            if request.id in self._calls:
                raise InvalidRequest("A request with this id is being served.")
            self._calls[request.id] = call
            call.task = self._run(self._follow(call, frame))

    async def _follow(self, call: _Call, frame: bytes) -> None:
        """Have a replica serve a request, and deliver what comes back."""
        stream = None
        try:
            stream, replies = await self._send(call, frame)
            if call.is_live:
                call.pump = asyncio.create_task(self._pump(call))
            async for reply in replies:
                self._deliver(call, read_frame(reply))
        except asyncio.CancelledError:
            if stream is not None:
                stream.cancel()
            raise
        except Exception as error:
            logger.warning("request %s was lost with its engine replica: %s", call.id, type(error).__name__)
        finally:
            if call.pump is not None:
                call.pump.cancel()
        self._lose(call)

    async def _send(self, call: _Call, frame: bytes) -> tuple[Any, AsyncIterator[bytes]]:
        """Return the answer and the frames to come in it, once a replica has taken the request.

        A request that none takes for `LOST_AFTER_S` is sent again: the replica that it was sent to may be gone.
        """
        while True:
            stream = self._handle.options(method_name="answer", stream=True, session_id=call.id).remote(frame)
            replies = aiter(stream)
            try:
                async with asyncio.timeout(LOST_AFTER_S):
                    call.replica, call.taken_s = (await anext(replies)).decode(), self._watched_s
                return stream, replies
            except TimeoutError:
                logger.warning("request %s: no engine replica takes it; sending it again", call.id)
                stream.cancel()
            except asyncio.CancelledError:
                stream.cancel()
                raise

    async def _pump(self, call: _Call) -> None:
        """Send a session's inputs to its replica, one call after the other so that they stay in order."""
        handle = self._handle.options(method_name="push", session_id=call.id)
        # The stream of its events reports a replica's loss.
        with contextlib.suppress(Exception):
            while True:
                frames = [await call.inputs.get()]
                while not call.inputs.empty():
                    frames.append(call.inputs.get_nowait())
                await handle.remote(call.id, frames)

    def _deliver(self, call: _Call, events: list[Event | LiveEvent]) -> None:
        with self._changed:
            for event in events:
                if self._calls.get(call.id) is not call:
                    return
                if isinstance(event, Done | Failed | Ended):
                    del self._calls[call.id]
                    self._changed.notify_all()
                self._tell(call, event)

    def _tell(self, call: _Call, event: Event | LiveEvent) -> None:
        """Deliver one event; a client that cannot take it is given up."""
        try:
            call.deliver(event)
        except Exception:
            logger.exception("request %s: an event cannot be delivered; giving the client up", call.id)
            self.abort(call.id)

    def _lose(self, call: _Call) -> None:
        """Fail a request whose events have ended before its terminal one."""
        error: ServeError = EngineFailed("The engine failed; it is being restarted.")
        self._deliver(call, [Failed(call.id, error)])

    async def _watch_replicas(self) -> None:
        """Ask the replicas for their stats, again and again; none waits for the answer of another."""
        asks: set[asyncio.Task[None]] = set()
        while True:
            for _ in range(len(self._reports) + 1):
                ask = asyncio.create_task(self._ask_replica())
                asks.add(ask)
                ask.add_done_callback(asks.discard)
            await asyncio.sleep(REPORT_INTERVAL_S)
            self._give_up_silent(REPORT_INTERVAL_S)

    async def _ask_replica(self) -> None:
        """Take the report of the replica whose turn it is."""
        answer = self._handle.options(method_name="report", session_id=REPORTS).remote()
        try:
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                id, frame = await answer
        except Exception as error:
            logger.debug("an engine replica did not report: %s", error)
            return
        (stats,) = read_frame(frame)
        with self._changed:
            self._reports[id] = _Report(stats, self._watched_s)
            self._changed.notify_all()

    def _give_up_silent(self, passed_s: float) -> None:
        """Forget the replicas that have been silent for too long, and fail what they were given."""
        with self._changed:
            self._watched_s += passed_s
            oldest_s = self._watched_s - LOST_AFTER_S
            for id, report in list(self._reports.items()):
                if report.at_s < oldest_s:
                    del self._reports[id]
                    self._past_counters = self._past_counters + report.stats.counters
            # A new replica may have a call before its first report.
            taken = [call for call in self._calls.values() if call.replica is not None and call.taken_s < oldest_s]
            lost = [call for call in taken if call.replica not in self._reports]
            self._changed.notify_all()
        for call in lost:
            logger.warning("request %s was lost: its engine replica is silent", call.id)
            self._lose(call)
            if call.task is not None:
                call.task.cancel()

    async def _stop(self) -> None:
        """Cancel all that runs on the loop, and wait for its end."""
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
