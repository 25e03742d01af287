"""The parts of one server that all its handlers share, and the places at its door."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from server.api.access.keys import KeyRing
from server.api.access.limits import KeyUsage
from server.api.access.shares import Shares
from server.audio.sandbox import DecoderPool
from server.audio.types import AudioLimits
from server.constraints.sandbox import GrammarSandbox
from server.errors import NotReady, Overloaded
from server.observability.metrics import Metrics
from server.registry.model import RETRY_AFTER_S
from server.registry.registry import ModelRegistry
from server.settings import Settings

# Requests whose body has come and that may be in the audio decoder, beyond the number that the engine takes.
PLACES_BEYOND_ENGINE = 16


class Door:
    """Places for requests that the engine does not know yet, shared between clients.

    They are shared as `Shares` are.
    """

    def __init__(self, places: int) -> None:
        self._shares = Shares(places)

    def check(self, client: str, retry_after_s: int) -> None:
        """Raise `Overloaded` if there is no place now: for a client that need not send its body then."""
        if not self._shares.has_room(client):
            raise _busy(retry_after_s)

    @contextlib.contextmanager
    def place(self, client: str, retry_after_s: int) -> Iterator[None]:
        """Hold a place for `client`. Raises `Overloaded`."""
        if not self._shares.take(client):
            raise _busy(retry_after_s)
        try:
            yield
        finally:
            self._shares.give_back(client)


def _busy(retry_after_s: int) -> Overloaded:
    return Overloaded("The server is busy; try again soon.", retry_after_s=retry_after_s)


def build_decode_pool(sample_rate_hz: int, settings: Settings) -> DecoderPool:
    """Return a pool that decodes audio to this sample rate, yet to be started."""
    return DecoderPool(
        settings.decode_workers,
        AudioLimits(sample_rate_hz, settings.min_audio_s, settings.max_audio_s),
        timeout_s=settings.decode_timeout_s,
        memory_bytes=settings.decode_memory_bytes,
        max_waiting=len(settings.gpu_numbers) * (settings.slots + settings.queue_limit),
        max_streams=settings.decode_streams,
    )


class Listener(Protocol):
    """Serves clients on a port of its own, beside the HTTP server."""

    @property
    def is_busy(self) -> bool:
        """Whether it has work that a stop waits for."""
        ...

    def stop(self) -> None:
        """Take no new work, and bring what there is to its end."""
        ...


@dataclass
class ServerContext:
    """The parts of one server, put together by `create_app`.

    The doors hold requests until the engine takes them, and WebSockets until they have started a session. The engine itself
    decides about its queue, by priority and between clients.
    """

    models: ModelRegistry
    settings: Settings
    decode_pool: DecoderPool
    grammar_sandbox: GrammarSandbox
    metrics: Metrics
    keys: KeyRing
    usage: KeyUsage
    stopping: bool = False
    """Whether the server takes no new work any more."""
    listeners: list[Listener] = field(default_factory=list)
    """The servers of clients on other ports."""
    uploads: Door = field(init=False)
    new_sockets: Door = field(init=False)

    def __post_init__(self) -> None:
        engines = len(self.settings.gpu_numbers) * len(self.models.models)
        self.uploads = Door(engines * (self.settings.slots + self.settings.queue_limit) + PLACES_BEYOND_ENGINE)
        self.new_sockets = Door(engines * self.settings.live_sessions + PLACES_BEYOND_ENGINE)

    def require_ready(self) -> int:
        """Return the `Retry-After` of refusals, in seconds. Raises `NotReady` if no model takes requests."""
        if self.stopping:
            raise NotReady("The server is stopping.", retry_after_s=RETRY_AFTER_S)
        return self.models.require_ready()
