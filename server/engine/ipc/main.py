"""The child of `ProcessEngine`: serves an engine of its own over the socket that it was started with.

It reads `StartEngine` first; then requests and sessions, each addressed with a serial number, inputs of sessions, addressed with
the session's id, and `Abort`. It writes `EngineStats` as soon as it is ready and from then on, and the events of requests and
sessions, addressed with their serial number; or `StartFailed`. It ends when the socket does, and never outlives the process
that started it.
"""

import contextlib
import ctypes
import importlib
import logging
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from models.protocols import BackendError
from server.engine.ipc.codec import Abort, Address, Channel, StartEngine, StartFailed, pack
from server.engine.types.events import Event, Failed, LiveEvent
from server.engine.types.protocol import Engine
from server.engine.types.requests import InstructRequest, LiveRequest
from server.engine.types.stats import EngineStats
from server.errors import EngineFailed, ServeError
from server.garbage import leave_out_present_objects
from server.logs import configure_logging

logger = logging.getLogger(__name__)

BUSY_REPORT_S = 0.05
IDLE_REPORT_S = 0.5
# A parent that leaves more events unread is not coming back.
MAX_UNSENT_EVENTS = 200_000
PR_SET_PDEATHSIG = 1
TRIM_IDLE_S, TRIM_BUSY_S = 1.0, 60.0

Messages = Iterator[tuple[Address, Any]]


def main(descriptor: int) -> None:
    """Build the engine, start it, and serve until the parent hangs up."""
    _depend_on_parent()
    channel = Channel(socket.socket(fileno=descriptor))
    messages = read_messages(channel)
    if (first := next(messages, None)) is None:
        return
    start: StartEngine = first[1]
    configure_logging(start.log_level)
    try:
        engine = build_from_path(start.factory, start.arguments)
        engine.start()
        leave_out_present_objects()
    except Exception as error:
        # The message of a `BackendError` says all that an operator has to know.
        reason = str(error)
        if not isinstance(error, BackendError):
            logger.exception("the engine could not be started")
            reason = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            channel.send(pack((None, StartFailed(reason))))
        return
    serve(engine, channel, messages)


def build_from_path(factory: str, arguments: tuple[str | float, ...]) -> Engine:
    """Return the engine that `factory`, a `module:function`, makes of the arguments."""
    module, _, function = factory.partition(":")
    return cast(Engine, getattr(importlib.import_module(module), function)(*arguments))


def read_messages(channel: Channel) -> Messages:
    """Yield the parent's messages until it hangs up."""
    with contextlib.suppress(EOFError):
        while True:
            yield from channel.receive()


def serve(engine: Engine, channel: Channel, messages: Messages) -> None:
    """Serve a started engine until there are no more messages."""
    outbox, stopping = Outbox(channel), threading.Event()
    reporter = threading.Thread(target=_report, args=(engine, outbox, stopping), name="report", daemon=True)
    reporter.start()
    for address, value in messages:
        match value:
            case Abort():
                engine.abort(str(address))
            case InstructRequest() | LiveRequest():
                submit_or_fail(engine, value, partial(outbox.put_event, address))
                outbox.decided = address
            case _:
                engine.push(str(address), value)
    # The parent has waited for the answers, or does not want them.
    engine.drain(0)
    stopping.set()
    reporter.join()
    outbox.put_report(engine.stats())
    outbox.finish()


class Outbox:
    """Sends events and reports to the parent on a thread of its own: no caller waits for the socket.

    All events that are there go in one message, and of the reports the last, addressed with the serial number of the last request
    that was `decided` about before it: the parent knows by then of every refusal up to that one.

    If the parent does not read for so long that `MAX_UNSENT_EVENTS` wait, the outbox hangs up, which ends the child.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._changed = threading.Condition()
        self._events: list[tuple[Address, Event | LiveEvent]] = []
        self.decided: Address = None
        self._report: tuple[Address, EngineStats] | None = None
        self._finished = False
        self._sender = threading.Thread(target=self._send_all, name="sender", daemon=True)
        self._sender.start()

    def put_event(self, address: Address, event: Event | LiveEvent) -> None:
        with self._changed:
            self._events.append((address, event))
            self._changed.notify()
            if len(self._events) <= MAX_UNSENT_EVENTS:
                return
            self._events.clear()
        logger.error("the server's process does not read; giving up")
        self._channel.hang_up()

    def put_report(self, report: EngineStats) -> None:
        with self._changed:
            self._report = self.decided, report
            self._changed.notify()

    def finish(self) -> None:
        """Return when everything is sent, or the parent is gone."""
        with self._changed:
            self._finished = True
            self._changed.notify()
        self._sender.join()

    def _send_all(self) -> None:
        # If the parent is gone, nothing is left to be done.
        with contextlib.suppress(OSError):
            while batch := self._next_batch():
                self._channel.send(pack(*batch))

    def _next_batch(self) -> list[tuple[Address, Any]]:
        """Return all that there is to send, or nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._report is not None or self._finished)
            batch: list[tuple[Address, Any]] = list(self._events)
            if self._report is not None:
                batch.append(self._report)
            self._events, self._report = [], None
            return batch


def _depend_on_parent() -> None:
    # Service managers signal the whole group, but only the parent knows what has to be finished first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A dump of gigabytes would keep the parent from noticing a crash.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # The socket's end tells a child that runs; this also ends one that is stopped, or does not come to read.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def submit_or_fail(engine: Engine, request: InstructRequest | LiveRequest, deliver: Callable[[Event | LiveEvent], None]) -> None:
    """Submit a request or open a session for a caller in another process, which gets a refusal as the event `Failed`."""
    try:
        if isinstance(request, LiveRequest):
            engine.open_live(request, deliver)
        else:
            engine.submit(request, deliver)
    except ServeError as error:
        deliver(Failed(request.id, error))
    except Exception:
        logger.exception("request %s could not be submitted", request.id)
        deliver(Failed(request.id, EngineFailed("The engine failed.")))


def _report(engine: Engine, outbox: Outbox, stopping: threading.Event) -> None:
    interval_s = 0.0
    memory = MemoryReturn()
    while not stopping.wait(interval_s):
        stats = engine.stats()
        outbox.put_report(stats)
        is_busy = bool(stats.waiting + stats.running + stats.live_jobs)
        memory.look(is_busy, time.monotonic())
        interval_s = BUSY_REPORT_S if is_busy else IDLE_REPORT_S


def return_free_memory() -> None:
    """Give the pages of the heap that hold nothing back to the system. Does nothing where the C library has no such function."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class MemoryReturn:
    """Decides when to give freed memory back: `TRIM_IDLE_S` after work has ended, and every `TRIM_BUSY_S` where it does not end.

    Batches of many sizes leave holes between what is kept, and the C library keeps holes for later: after thousands of sessions
    they were larger than what was in use, though nothing leaked.
    """

    def __init__(self, act: Callable[[], None] = return_free_memory) -> None:
        self._act = act
        # When there was work that memory was not given back after: first and last seen, by the monotonic clock.
        self._since_s: float | None = None
        self._busy_s = 0.0

    def look(self, is_busy: bool, now_s: float) -> None:
        """Note whether there is work now, and act if it is time to. Call it every second or more often."""
        if is_busy:
            self._since_s = now_s if self._since_s is None else self._since_s
            self._busy_s = now_s
        if self._since_s is None:
            return
        if now_s - self._busy_s >= TRIM_IDLE_S:
            self._since_s = None
            self._act()
        elif is_busy and now_s - self._since_s >= TRIM_BUSY_S:
            self._since_s = now_s
            self._act()
