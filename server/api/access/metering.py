"""An engine that counts the audio of each client, so that no dialect can forget to."""

from collections.abc import Callable

from server.api.access.limits import KeyUsage
from server.engine.types.events import Ended, Event, Failed, LiveEvent
from server.engine.types.protocol import Engine
from server.engine.types.requests import Audio, InstructRequest, LiveInput, LiveRequest
from server.engine.types.stats import EngineStats


class MeteredEngine:
    """`Engine` that passes everything on to another one, and counts the audio that it took as it does."""

    def __init__(self, engine: Engine, usage: KeyUsage) -> None:
        self._engine = engine
        self._usage = usage
        # The clients of live sessions, by session.
        self._clients: dict[str, str] = {}
        self.sample_rate_hz = engine.sample_rate_hz
        self.max_audio_s = engine.max_audio_s
        self.model_name = engine.model_name

    def start(self) -> None:
        self._engine.start()

    def transcribes(self, instruction: str) -> bool:
        return self._engine.transcribes(instruction)

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        self._engine.submit(request, deliver)
        self._usage.add_audio(request.client, len(request.audio) / self.sample_rate_hz)

    def open_live(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        def deliver_on(event: LiveEvent) -> None:
            if isinstance(event, Ended | Failed):
                self._clients.pop(request.id, None)
            deliver(event)

        self._clients[request.id] = request.client
        try:
            self._engine.open_live(request, deliver_on)
        except BaseException:
            del self._clients[request.id]
            raise

    def push(self, request_id: str, item: LiveInput) -> None:
        if isinstance(item, Audio) and (client := self._clients.get(request_id)) is not None:
            self._usage.add_audio(client, len(item.samples) / self.sample_rate_hz)
        self._engine.push(request_id, item)

    def abort(self, request_id: str) -> None:
        self._clients.pop(request_id, None)
        self._engine.abort(request_id)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def drain(self, timeout_s: float) -> None:
        self._engine.drain(timeout_s)
