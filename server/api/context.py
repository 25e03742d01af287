"""The parts of one server that all its handlers share."""

from dataclasses import dataclass, field
from typing import Protocol

from server.api.access.keys import KeyRing
from server.api.access.limits import KeyUsage
from server.api.access.shares import Door
from server.api.body import BodyLimits
from server.audio.sandbox import DecoderPool
from server.audio.types import AudioLimits
from server.constraints.sandbox import GrammarSandbox
from server.observability.metrics import Metrics
from server.registry.registry import ModelRegistry
from server.settings import Settings

# Requests whose body has come and that may be in the audio decoder, beyond the number that the engine takes.
PLACES_BEYOND_ENGINE = 16


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

    port: int

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
    listeners: list[Listener] = field(default_factory=list)
    """The servers of clients on other ports."""
    bodies: BodyLimits = field(init=False)
    uploads: Door = field(init=False)
    new_sockets: Door = field(init=False)

    def __post_init__(self) -> None:
        self.bodies = BodyLimits(self.settings.max_body_bytes, self.settings.body_timeout_s)
        engines = len(self.settings.gpu_numbers) * len(self.models.models)
        self.uploads = Door(engines * (self.settings.slots + self.settings.queue_limit) + PLACES_BEYOND_ENGINE)
        self.new_sockets = Door(engines * self.settings.live_sessions + PLACES_BEYOND_ENGINE)
