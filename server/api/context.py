"""What the HTTP handlers share: the parts of one server, put together once by `create_app`."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from server.audio.sandbox import DecodePool
from server.constraints.sandbox import GrammarSandbox
from server.engine.types.protocol import Engine
from server.errors import NotReady, Overloaded
from server.observability.metrics import Metrics
from server.settings import Settings

RETRY_AFTER_S = 1
# Requests may be uploading or in the audio decoder while the engine is full.
UPLOADS_BEYOND_ENGINE = 16


@dataclass
class ServerContext:
    """One server's parts, and how many requests and live sessions are inside it."""

    engine: Engine
    settings: Settings
    decode_pool: DecodePool
    grammar_sandbox: GrammarSandbox
    metrics: Metrics
    in_flight: int = 0
    sessions: int = 0
    start_failed: bool = False

    def require_ready(self) -> None:
        """Raises `NotReady` unless the engine takes requests."""
        if self.start_failed:
            raise NotReady("The engine could not be started; the server's log says why.")
        if not self.engine.stats().ready:
            raise NotReady("The server is not ready to take requests.", retry_after_s=RETRY_AFTER_S)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place for one request. Raises `NotReady` or `Overloaded` before any of its body is read."""
        self.require_ready()
        stats = self.engine.stats()
        room = stats.slots + stats.queue_limit
        if stats.running + stats.waiting >= room or self.in_flight >= room + UPLOADS_BEYOND_ENGINE:
            raise Overloaded("The server is busy; try again soon.", retry_after_s=RETRY_AFTER_S)
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)

    @contextlib.contextmanager
    def session_admitted(self) -> Iterator[None]:
        """Hold a place for one live session. Raises `NotReady` or `Overloaded`."""
        self.require_ready()
        stats = self.engine.stats()
        # Those that are not in the engine yet count too, and so do those that are still in it when their clients have left.
        if max(stats.live_sessions, self.sessions) >= stats.live_limit:
            raise Overloaded("All live sessions are taken; try again later.", retry_after_s=RETRY_AFTER_S)
        self.sessions += 1
        self.metrics.live.open_sockets.set(self.sessions)
        try:
            yield
        finally:
            self.sessions -= 1
            self.metrics.live.open_sockets.set(self.sessions)
