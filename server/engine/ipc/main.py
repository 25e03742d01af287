"""The child of `ProcessEngine`: serves an engine of its own over the socket that it was started with.

`EngineChild` starts it. What it reads: first `(factory, arguments, log level)`, the engine's factory as `module:function`; then
`(serial, InstructRequest)` for a request, `(serial, LiveRequest)` for a session and `(id, LiveInput)` for what is pushed,
and `(None, id)` for either to abort. What it writes: `EngineStats` as soon as it is ready and from then on, `(serial, event)`
of requests and sessions, or one string that says why the engine could not be started. It ends when the socket does, and never
outlives the process that started it.
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
from server.engine.ipc.channel import Channel, pack
from server.engine.types.events import Event, Failed, LiveEvent
from server.engine.types.protocol import Engine
from server.engine.types.requests import InstructRequest, LiveRequest
from server.errors import EngineFailed, ServeError
from server.logs import configure_logging

logger = logging.getLogger(__name__)

BUSY_REPORT_S = 0.05
IDLE_REPORT_S = 0.5
PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    """Build the engine, start it, and serve until the parent hangs up."""
    _depend_on_parent()
    channel = Channel(socket.socket(fileno=descriptor))
    messages = _messages(channel)
    if (first := next(messages, None)) is None:
        return
    factory, arguments, log_level = first
    configure_logging(log_level)
    try:
        engine = build_from_path(factory, arguments)
        engine.start()
    except BackendError as error:
        # It says all that there is to know, and to whom it may concern.
        _send(channel, str(error))
        return
    except Exception as error:
        logger.exception("the engine could not be started")
        _send(channel, f"{type(error).__name__}: {error}")
        return
    threading.Thread(target=_report, args=(engine, channel), name="report", daemon=True).start()
    for address, content in messages:
        match address:
            case None:
                engine.abort(content)
            case str(id):
                engine.push(id, content)
            case serial:
                _submit(engine, content, partial(_tell, channel, serial))
    # The parent has waited for the answers, or does not want them.
    engine.drain(0)
    _send(channel, engine.stats())


def build_from_path(factory: str, arguments: tuple[str | float, ...]) -> Engine:
    """The engine that `factory`, a `module:function`, makes of the arguments."""
    module, _, function = factory.partition(":")
    return cast(Engine, getattr(importlib.import_module(module), function)(*arguments))


def _depend_on_parent() -> None:
    # Service managers signal the whole group, but only the parent knows what has to be finished first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A dump of gigabytes would keep the parent from noticing a crash.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # The socket's end tells a child that runs; this also ends one that is stopped, or does not come to read.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _messages(channel: Channel) -> Iterator[Any]:
    with contextlib.suppress(EOFError):
        while True:
            yield from channel.receive()


def _submit(engine: Engine, request: InstructRequest | LiveRequest, tell: Callable[[Event | LiveEvent], None]) -> None:
    try:
        if isinstance(request, LiveRequest):
            engine.open_live(request, tell)
        else:
            engine.submit(request, tell)
    except ServeError as error:
        tell(Failed(request.id, error))
    except Exception:
        logger.exception("request %s could not be submitted", request.id)
        tell(Failed(request.id, EngineFailed("The engine failed.")))


def _tell(channel: Channel, serial: int, event: Event | LiveEvent) -> None:
    _send(channel, (serial, event))


def _report(engine: Engine, channel: Channel) -> None:
    while True:
        stats = engine.stats()
        _send(channel, stats)
        time.sleep(BUSY_REPORT_S if stats.waiting + stats.running + stats.live_jobs else IDLE_REPORT_S)


def _send(channel: Channel, message: object) -> None:
    # With the parent gone nobody is left to be told.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.send(pack(message))
