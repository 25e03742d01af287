"""The native dialect of live sessions: messages of `/v1/stream` in, its events out."""

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.websockets import WebSocket

from server.api.context import ServerContext
from server.api.live.accepting import serve_socket
from server.api.live.outbox import CloseReason
from server.api.live.session import Dialect, SocketSession
from server.api.native.messages import (
    DEFAULT_RATE_HZ,
    MAX_FRAME_BYTES,
    MessageReader,
    ReadyEvent,
    SessionLimits,
    StartMessage,
    event_frame,
    live_error_event,
)
from server.audio.pcm import PcmStream, SampleStream
from server.audio.stream import OpusStream
from server.audio.wave_header import PcmFormat
from server.engine.types.events import Failed, Listened, LiveEvent
from server.engine.types.requests import ChangeInstruction, EndOfAudio, Flush
from server.errors import InvalidRequest


class NativeDialect(Dialect):
    """`Dialect` of `/v1/stream`. The session takes its place in the engine at the `start`, so `ready` means that it has one."""

    def __init__(self, session: SocketSession, reader: MessageReader) -> None:
        self._session = session
        self._reader = reader
        self._settings = session.context.settings
        self._start_message: StartMessage | None = None

    @property
    def idle_timeout_s(self) -> float:
        return self._settings.live_idle_timeout_s

    @property
    def silence_s(self) -> float | None:
        return None if self._start_message is None else self._start_message.voice.silence_duration_ms / 1000

    async def take_message(self, message: str | bytes) -> None:
        if self._start_message is None:
            await self._start(message)
            return
        if self._session.audio_has_ended:
            raise InvalidRequest("Nothing can follow the end.")
        if isinstance(message, bytes):
            await self._session.push_audio(message)
            return
        match self._reader.read(message):
            case EndOfAudio():
                await self._session.end_audio()
            case ChangeInstruction() as change:
                self._session.change_instruction(change)
            case Flush() as flush:
                self._session.push_flush(flush)

    def frames_of(self, event: LiveEvent) -> Sequence[str]:
        return () if isinstance(event, Listened | Failed) else (event_frame(event, self._session.request_id),)

    def closing_frames(self, reason: CloseReason) -> Sequence[str]:
        if reason.error is None:
            return ()
        return (live_error_event(self._session.request_id, reason.error, fatal=True).frame(),)

    async def _start(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            raise InvalidRequest("The first message has to be a start, before any audio.")
        start, session = self._reader.read_start(message), self._session
        session.choose_model(session.context.models.find(start.model))
        request = start.live_request(session.id, session.client)
        rate_hz = start.sample_rate_hz or DEFAULT_RATE_HZ
        # The client is not idle while its constraint waits for its turn to be checked, and its audio for a decoder.
        with session.waiting():
            if request.task.sampling.constraint is not None:
                await session.context.grammar_sandbox.check(request.task.sampling.constraint, request.client)
            session.configure(request, await self._open_audio(start, rate_hz))
        # The answer about a whole recording needs all of it in one session.
        session.gives_place_back = start.scope == "utterance"
        await session.open()
        self._start_message = start
        limits = SessionLimits(
            idle_timeout_s=self._settings.live_idle_timeout_s,
            max_session_s=self._settings.live_max_session_s,
            max_frame_bytes=MAX_FRAME_BYTES,
        )
        session.put(ReadyEvent(session_id=session.id, sample_rate_hz=rate_hz, encoding=start.encoding, limits=limits).frame())

    async def _open_audio(self, start: StartMessage, rate_hz: int) -> SampleStream:
        context = self._session.context
        if start.encoding == "ogg_opus":
            return await OpusStream.open(context.decode_pool, self._session.client)
        return PcmStream(PcmFormat(rate_hz), self._session.model.sample_rate_hz)


def stream_router(context: ServerContext) -> APIRouter:
    """Return the route of the live API. A refusal is a plain HTTP reply in place of the WebSocket."""
    router = APIRouter()
    reader = MessageReader(context.settings, lambda name: context.models.find(name).max_audio_s)

    @router.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        """Live audio in our own messages."""
        await serve_socket(context, socket, lambda session: NativeDialect(session, reader), max_message_bytes=MAX_FRAME_BYTES)

    return router
