"""The engine in a supervised child process: a crash or a hang of the models costs the running requests, never the server."""

import contextlib
import itertools
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.child_process import describe_exit
from server.engine.ipc.codec import Abort, Address, Channel, StartEngine, StartFailed, pack
from server.engine.ipc.watchdog import Watchdog
from server.engine.scheduler.admission import overloaded
from server.engine.scheduler.queues import has_claim
from server.engine.types.events import Done, Ended, Event, Failed, LiveEvent
from server.engine.types.options import Priority
from server.engine.types.requests import EndOfAudio, InstructRequest, LiveInput, LiveRequest
from server.engine.types.stats import EngineCounters, EngineStats
from server.errors import EngineFailed, InvalidRequest, NotReady, Overloaded, ServeError

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
TICK_S = 0.1
START_TIMEOUT_S = 120.0
# How long to wait for a child that has died, and for one that was told to stop.
EXIT_GRACE_S = 1.0
STOP_GRACE_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
# Requests, and sessions, that the child is asked about beyond the number that it takes. It decides which ones are refused or
# give up their place; this only limits what waits for its decision.
UNDECIDED_LIMIT = 64
# Gets the descriptor of its socket and this process's import path as arguments.
PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from server.engine.ipc.main import main; main(int(sys.argv[1]))"
KILL_TIMEOUT_S = 5.0


class StartError(RuntimeError):
    """The child could not be started; its log says more."""


class EngineChild:
    """A new interpreter that runs `server.engine.ipc.main`. Start it from a thread that outlives it: it ends with that thread.

    The process has a session of its own, so a terminal's Ctrl-C reaches only the parent, and writes to the parent's stderr.
    """

    def __init__(self, first_frame: bytearray) -> None:
        """Raises `OSError` if no process can be started, and `RuntimeError` if no thread can."""
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno()), *(path or os.getcwd() for path in sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._posting = threading.Lock()
        # Frames that the socket did not take at once, until None; counted until they are sent.
        self._outbox: queue.SimpleQueue[bytearray | memoryview | None] = queue.SimpleQueue()
        self._backlog = 0
        self._writer = threading.Thread(target=self._write, name="engine-child-writer", daemon=True)
        self._writer.start()
        self.post(first_frame)

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def queued_s(self) -> float:
        """How long its first thread, which loads the models, has waited for a processor; 0 where the system does not say."""
        try:
            return int(Path(f"/proc/{self.process_id}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0

    def post(self, frame: bytearray) -> None:
        """Send what `pack` returned. Never blocks, not even on a child that does not read."""
        # `receive` notices a child that is gone.
        with self._posting, contextlib.suppress(OSError):
            # Sent here if possible: the writer would wait for the caller to release the interpreter's lock.
            rest = frame if self._backlog else self._channel.send_some(frame)
            if rest:
                self._backlog += 1
                self._outbox.put(rest)

    def receive(self, timeout_s: float) -> list[tuple[Address, Any]]:
        """Return the child's messages that have arrived, none after the timeout. Raises `EOFError` once it is dead."""
        return self._channel.receive(timeout_s)

    def finish(self) -> None:
        """Ask the child to end after everything that was posted."""
        self._outbox.put(None)

    def end(self, grace_s: float) -> str:
        """End the child, by force if it does not end by itself in time, and return how it ended. Nothing of it is left."""
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_TIMEOUT_S)
        self._channel.hang_up()
        self.finish()
        self._writer.join()
        self._channel.close()
        return describe_exit(self._process.returncode)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (frame := self._outbox.get()) is not None:
                self._channel.send(frame)
                with self._posting:
                    self._backlog -= 1
            self._channel.finish()


class _ChildLostError(Exception):
    """The child has died or has to be replaced; the message says why."""


@dataclass(frozen=True)
class _Waiting:
    """A request in the child. Ids may come again after an abort, serial numbers do not."""

    serial: int
    deliver: Callable[[Any], None]
    client: str
    priority: Priority
    is_live: bool
    is_recording: bool


class ProcessEngine:
    """The `Engine` protocol over an engine in a child process, which is replaced whenever it dies or stalls.

    `check_room` judges by the requests under way and the child's last report, and says nothing where only the child can tell.
    `submit` refuses at once for reasons that are known here: not ready, or the id is being served. The child decides about the
    rest, such as which request has a place in a full queue and whether the prompt is too long; its refusal comes back as the
    request's `Failed`, with the same error.

    A child is lost when it dies or `Watchdog` finds a problem. Its requests get `Failed` with `EngineFailed` at once, and a new
    child is started. If the first child cannot be started, that is an error; a later one is tried again, after growing pauses.
    Events are delivered as by `LocalEngine`: under the engine's lock, none after a terminal event or a call of `abort`.

    In `stats`, the number of sessions is exact, and so is the sum of waiting and running, of which as many count as running as
    there are slots; the rest is the child's last report, at most half a second old. Counters go on across restarts.
    """

    def __init__(
        self,
        factory: str,
        arguments: tuple[str | float, ...],
        sample_rate_hz: int,
        max_audio_s: float,
        *,
        transcribes: Callable[[str], bool],
        stall_timeout_s: float,
        start_timeout_s: float = START_TIMEOUT_S,
        model_name: str = "model",
    ) -> None:
        """`factory` is the `module:function` that makes the engine in the child, from `arguments`."""
        self.transcribes = transcribes
        self.sample_rate_hz = sample_rate_hz
        self.max_audio_s = max_audio_s
        self.model_name = model_name
        self._first_message = pack((None, StartEngine(factory, arguments, logging.getLogger().getEffectiveLevel())))
        self._stall_timeout_s = stall_timeout_s
        self._start_timeout_s = start_timeout_s
        self._serials = itertools.count()
        # Guards everything below.
        self._changed = threading.Condition()
        self._requests: dict[str, _Waiting] = {}
        # The child, once it is ready, with its last report, and whether it is silent or stuck.
        self._child: EngineChild | None = None
        self._report = EngineStats(ready=False, waiting=0, running=0, slots=0, queue_limit=0)
        self._is_suspect = False
        # The serial number up to which the child has decided about requests.
        self._decided = -1
        self._past_counters = EngineCounters()
        self._starts = 0
        self._start_error: str | None = None
        self._draining = False
        self._stop_at_s = float("inf")
        self._supervisor = threading.Thread(target=self._supervise, name="engine-supervisor", daemon=True)

    @property
    def process_id(self) -> int | None:
        """The process id of the child while it is ready."""
        with self._changed:
            return self._child.process_id if self._child is not None else None

    def start(self) -> None:
        """Start the child and return when it is ready. Raises `StartError` if it does not become so."""
        self._supervisor.start()
        with self._changed:
            self._changed.wait_for(lambda: self._child is not None or self._start_error is not None or self._draining)
            if self._start_error is not None:
                raise StartError(f"The engine's process could not be started: {self._start_error.removesuffix('.')}.")

    def check_room(self, client: str, priority: Priority) -> None:
        with self._changed:
            self._require_child()
            report, requests = self._report, [each for each in self._requests.values() if not each.is_live]
            counts = Counter(each.client for each in requests)
            is_full = len(requests) >= report.slots + report.queue_limit
            # A request that the child has not decided about may be refused, or take the place of another.
            is_full &= all(each.serial <= self._decided for each in requests)
            # Only the child knows which of them can still give up their place.
            may_displace = any(each.priority > priority or has_claim(client, each.client, counts) for each in requests)
            if report.is_overloaded or (is_full and not may_displace):
                raise overloaded(report.predicted_wait_s)

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        self._hand_over(request, deliver)

    def open_live(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        self._hand_over(request, deliver)

    def push(self, request_id: str, item: LiveInput) -> None:
        message = pack((request_id, item))
        with self._changed:
            if request_id in self._requests and self._child is not None:
                self._child.post(message)

    def abort(self, request_id: str) -> None:
        with self._changed:
            if self._requests.pop(request_id, None) is not None and self._child is not None:
                self._child.post(pack((request_id, Abort())))
            self._changed.notify_all()

    def stats(self) -> EngineStats:
        with self._changed:
            sessions = sum(request.is_live for request in self._requests.values())
            recordings = sum(request.is_recording for request in self._requests.values())
            requests = len(self._requests) - sessions
            running = min(requests, self._report.slots)
            return replace(
                self._report,
                ready=self._ready,
                waiting=requests - running,
                running=running,
                live_sessions=sessions - recordings,
                recordings=recordings,
                counters=replace(self._past_counters + self._report.counters, restarts=max(0, self._starts - 1)),
            )

    def drain(self, timeout_s: float) -> None:
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            for id, request in self._requests.items():
                if request.is_live and self._child is not None:
                    self._child.post(pack((id, EndOfAudio())))
            self._changed.wait_for(lambda: not self._requests or not self._supervisor.is_alive(), timeout_s)
            self._fail_all(NotReady("The engine is stopping."))
            self._stop_at_s = time.monotonic() + STOP_GRACE_S
            if self._child is not None:
                self._child.finish()
        if self._supervisor.is_alive():
            self._supervisor.join()

    def _hand_over(self, request: InstructRequest | LiveRequest, deliver: Callable[[Any], None]) -> None:
        serial, is_live = next(self._serials), isinstance(request, LiveRequest)
        is_recording = isinstance(request, LiveRequest) and request.is_recording
        message = pack((serial, request))
        with self._changed:
            child = self._require_child()
            if request.id in self._requests:
                raise InvalidRequest("A request with this id is being served.")
            report, sessions = self._report, sum(request.is_live for request in self._requests.values())
            places = report.live_limit + report.recording_limit if is_live else report.slots + report.queue_limit
            if (sessions if is_live else len(self._requests) - sessions) >= places + UNDECIDED_LIMIT:
                raise Overloaded("The server is busy; try again later.", retry_after_s=RETRY_AFTER_S)
            self._requests[request.id] = _Waiting(serial, deliver, request.client, request.priority, is_live, is_recording)
            child.post(message)

    def _require_child(self) -> EngineChild:
        """Return the child. Raises `NotReady` unless it takes requests."""
        if self._child is None or not self._ready:
            raise NotReady("The server is not ready to take requests.", retry_after_s=RETRY_AFTER_S)
        return self._child

    @property
    def _ready(self) -> bool:
        return self._child is not None and not self._is_suspect and not self._draining

    def _supervise(self) -> None:
        pause_s = 0.0
        while not self._pause(pause_s):
            was_ready = self._run_child()
            pause_s = 0.0 if was_ready else min(max(FIRST_PAUSE_S, 2 * pause_s), LONGEST_PAUSE_S)

    def _pause(self, pause_s: float) -> bool:
        """Wait before the next child is started. Return True if none is wanted any more."""
        with self._changed:
            return self._changed.wait_for(lambda: self._draining or self._start_error is not None, pause_s)

    def _run_child(self) -> bool:
        """Serve with one child until it ends. Return whether it was ever ready."""
        with self._changed:
            self._starts += 1
        try:
            child = EngineChild(self._first_message)
        except (OSError, RuntimeError) as error:
            logger.exception("no process can be started for the engine")
            self._note_failed_start(str(error))
            return False
        reason, grace_s = "", 0.0
        try:
            self._attend(child)
        except EOFError:
            grace_s = EXIT_GRACE_S
        except _ChildLostError as error:
            reason = str(error)
        except Exception:
            logger.exception("the engine's process cannot be understood")
        # First the clients: a process may take its time to end.
        was_ready = self._lose_child()
        manner = child.end(grace_s)
        reason = reason or manner
        if self._draining:
            logger.info("the engine's process %d is stopped", child.process_id)
        else:
            logger.error("the engine's process %d has ended: %s", child.process_id, reason)
        if not was_ready:
            self._note_failed_start(reason)
        return was_ready

    def _note_failed_start(self, reason: str) -> None:
        with self._changed:
            if self._starts == 1 and not self._draining:
                self._start_error = reason
            self._changed.notify_all()

    def _attend(self, child: EngineChild) -> None:
        """Take the child's messages until it has to stop. Raises `EOFError` or `_ChildLostError` when it is lost."""
        watchdog = Watchdog(time.monotonic(), self._start_timeout_s, self._stall_timeout_s)
        while True:
            for address, value in child.receive(TICK_S):
                match value:
                    case EngineStats():
                        watchdog.take_report(value)
                        self._take_report(child, value, watchdog.is_stuck, address)
                    case StartFailed(reason):
                        raise _ChildLostError(reason)
                    case _:
                        self._deliver(address, value)
            watchdog.advance(time.monotonic(), child.queued_s)
            if (problem := watchdog.problem) is not None:
                raise _ChildLostError(problem)
            with self._changed:
                self._is_suspect = watchdog.is_silent or watchdog.is_stuck
                if time.monotonic() > self._stop_at_s or (self._stop_at_s != float("inf") and self._child is not child):
                    return

    def _take_report(self, child: EngineChild, report: EngineStats, is_stuck: bool, decided: Address) -> None:
        with self._changed:
            if not report.ready and not self._draining:
                raise _ChildLostError("its engine has stopped")
            if self._child is not child:
                logger.info("the engine's process %d is ready", child.process_id)
            self._child, self._report, self._is_suspect = child, report, is_stuck
            self._note_decided(decided)
            self._changed.notify_all()

    def _note_decided(self, serial: Address) -> None:
        """Note that the child has decided about this request, and so about those before it."""
        if isinstance(serial, int):
            self._decided = max(self._decided, serial)

    def _deliver(self, serial: Address, event: Event | LiveEvent) -> None:
        with self._changed:
            self._note_decided(serial)
            request = self._requests.get(event.request_id)
            if request is None or request.serial != serial:
                return
            if isinstance(event, Done | Failed | Ended):
                del self._requests[event.request_id]
                self._changed.notify_all()
            try:
                request.deliver(event)
            except Exception:
                logger.exception("request %s: an event cannot be delivered; giving the client up", event.request_id)
                self.abort(event.request_id)

    def _lose_child(self) -> bool:
        """Go on without a child. Return whether there was one that had become ready."""
        with self._changed:
            was_ready = self._child is not None
            self._child = None
            self._past_counters = self._past_counters + self._report.counters
            self._report = replace(self._report, ready=False, step_age_s=0.0, predicted_wait_s=0.0, counters=EngineCounters())
            self._fail_all(EngineFailed("The engine failed; it is being restarted."))
            self._changed.notify_all()
            return was_ready

    def _fail_all(self, error: ServeError) -> None:
        requests, self._requests = self._requests, {}
        for id, request in requests.items():
            try:
                request.deliver(Failed(id, error))
            except Exception:
                logger.exception("request %s: an event cannot be delivered", id)
