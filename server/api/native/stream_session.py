"""The life of one live session at the context: between a client's WebSocket and the engine."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

from starlette.websockets import WebSocket, WebSocketDisconnect

from server.api.context import RETRY_AFTER_S, ServerContext
from server.api.native.stream_inputs import SessionInputs, sample_stream
from server.api.native.stream_messages import (
    MAX_FRAME_BYTES,
    NORMAL,
    RESTART,
    CloseReason,
    ReadyEvent,
    SessionLimits,
    error_event,
    event_frame,
    farewell_of,
)
from server.api.native.stream_outbox import Outbox
from server.api.native.stream_requests import MessageReader, Start
from server.api.websocket import Connection
from server.audio.pcm import Samples, SampleStream
from server.engine.types.events import Ended, Failed, Flushed, Listened, LiveEvent
from server.engine.types.requests import ChangeInstruction, EndOfAudio, Flush
from server.errors import InvalidRequest, NotReady, ServeError, SessionIdle, SessionTooLong
from server.observability.live import SessionTimer

logger = logging.getLogger(__name__)

# With so many events to be told, or flushes to be answered, nothing more is taken in.
MAX_WAITING = 64
LEFT = CloseReason("client_left")
SLOW = CloseReason("slow_client")


class StreamSession:
    """One accepted WebSocket, from its first message to its close. `run` it once.

    One task hears the client, one tells it what comes of it, two watch the clock and the connection. Whatever ends the session
    comes to the one that tells, as a `CloseReason` in its turn or an error; then the engine forgets the session, and only then is
    the farewell said.
    """

    def __init__(self, context: ServerContext, socket: WebSocket, reader: MessageReader, request_id: str) -> None:
        self._id = f"stream-{uuid.uuid4().hex}"
        self._engine = context.engine
        self._settings = context.settings
        self._decode_pool = context.decode_pool
        self._grammar_trial = context.grammar_sandbox
        self._metrics = context.metrics.live
        self._socket = socket
        self._connection: Connection = socket.state.connection
        self._reader = reader
        self._request_id = request_id
        self._loop = asyncio.get_running_loop()
        self._timer = SessionTimer(self._metrics)
        self._inputs = SessionInputs(self._engine, self._id, self._timer)
        self._outbox = Outbox()
        self._audio: SampleStream | None = None
        self._hearing: asyncio.Task[None] | None = None
        # Set where the session is ended from here: it is said once everything is answered.
        self._last_word: CloseReason | None = None
        self._active_s = self._loop.time()
        self._listened_s = 0.0
        self._unanswered_flushes = 0
        self._all_pushed = self._is_open = False
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Serve the session to its end. Raises nothing but `CancelledError`."""
        farewell = await self._serve()
        self._metrics.sessions.labels(farewell.outcome).inc()
        reason = farewell.error.message if farewell.error is not None else farewell.outcome
        logger.info("request %s: %.2f s of live audio: %s", self._request_id, self._inputs.pushed_s, reason)
        await self._say(farewell)

    async def _serve(self) -> CloseReason:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._hearing = tasks.create_task(self._hear())
                watching = [tasks.create_task(self._watch_clock()), tasks.create_task(self._watch_connection())]
                farewell = await self._tell()
                for task in (self._hearing, *watching):
                    task.cancel()
            return farewell
        except Exception:
            logger.exception("Request %s met a bug.", self._request_id)
            return farewell_of(ServeError("The server met an unexpected error."))
        finally:
            if self._audio is not None:
                self._audio.close()
            if self._is_open:
                self._engine.abort(self._id)

    async def _say(self, farewell: CloseReason) -> None:
        if farewell.close_code is None:
            return
        try:
            async with asyncio.timeout(self._settings.live_send_timeout_s):
                if farewell.error is not None:
                    await self._socket.send_text(error_event(self._request_id, farewell.error, fatal=True).frame())
                await self._socket.close(farewell.close_code)
        except (TimeoutError, WebSocketDisconnect):
            logger.info("request %s: the client does not read its end", self._request_id)

    async def _hear(self) -> None:
        """What the client says, until its fault, or until it is gone."""
        try:
            audio = await self._start(await self._message())
            while True:
                await self._take(await self._message(), audio)
        except ServeError as error:
            self._outbox.put(farewell_of(error))
        except WebSocketDisconnect:
            self._outbox.put(LEFT)

    async def _message(self) -> str | bytes:
        """The next message. Where the engine or the client cannot follow, it stays in the network until they can."""
        await self._wait_for_room()
        # Small messages that came all at once must not hold up the others.
        await asyncio.sleep(0)
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        self._active_s = self._loop.time()
        content: str | bytes = message["bytes"] if message.get("text") is None else message["text"]
        return content

    async def _start(self, message: str | bytes) -> SampleStream:
        if isinstance(message, bytes):
            raise InvalidRequest("The first message has to be a start, before any audio.")
        client = self._socket.client.host if self._socket.client else ""
        start = self._reader.read(message, self._id, client)
        if not isinstance(start, Start):
            raise InvalidRequest("The first message has to be a start.", param="type")
        if start.request.sampling.constraint is not None:
            await self._grammar_trial.check(start.request.sampling.constraint, client)
        self._audio = await sample_stream(start, self._decode_pool, client)
        self._engine.open_live(start.request, self._deliver)
        self._is_open = True
        limits = SessionLimits(
            idle_timeout_s=self._settings.live_idle_timeout_s,
            max_session_s=self._settings.live_max_session_s,
            max_frame_bytes=MAX_FRAME_BYTES,
        )
        self._outbox.put(
            ReadyEvent(session_id=self._id, sample_rate_hz=start.sample_rate_hz, encoding=start.encoding, limits=limits)
        )
        return self._audio

    async def _take(self, message: str | bytes, audio: SampleStream) -> None:
        if self._all_pushed:
            raise InvalidRequest("Nothing can follow the end.")
        if isinstance(message, bytes):
            await self._hear_audio(audio.decode(message))
            return
        match self._reader.read(message, self._id, ""):
            case Start():
                raise InvalidRequest("The session has started already.", param="type")
            case EndOfAudio():
                await self._end_audio()
            case ChangeInstruction() as change:
                self._inputs.change(change)
            case Flush() as flush:
                self._unanswered_flushes += 1
                self._inputs.flush(flush)

    async def _end_audio(self) -> None:
        self._all_pushed = True
        if self._audio is not None:
            await self._hear_audio(self._audio.finish())
            self._inputs.end()

    async def _hear_audio(self, blocks: AsyncIterator[Samples]) -> None:
        """Little that was sent may be much to listen to."""
        async for samples in blocks:
            self._inputs.hear(samples)
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while self._congested:
            self._room.clear()
            await self._room.wait()

    @property
    def _congested(self) -> bool:
        backlog_s = self._inputs.pushed_s - self._listened_s
        return backlog_s > self._settings.live_backlog_s or len(self._outbox) + self._unanswered_flushes > MAX_WAITING

    def _deliver(self, event: LiveEvent) -> None:
        """For the engine's thread."""
        self._loop.call_soon_threadsafe(self._take_event, event)

    def _take_event(self, event: LiveEvent) -> None:
        self._active_s = self._loop.time()
        self._timer.event_came(event, time.perf_counter())
        match event:
            case Listened(audio_s=audio_s):
                self._listened_s = audio_s
                self._room.set()
                return
            case Failed(error=error):
                self._is_open = False
                farewell = farewell_of(error)
                # The engine took the session before, so that it is now on its way out.
                self._outbox.put(replace(farewell, close_code=RESTART) if isinstance(error, NotReady) else farewell)
                return
            case Ended():
                self._is_open = False
            case Flushed():
                self._unanswered_flushes -= 1
        self._outbox.put(event)

    async def _tell(self) -> CloseReason:
        """Tell the client what comes, up to what ends the session."""
        try:
            while True:
                item = await self._outbox.take()
                if isinstance(item, CloseReason):
                    return item
                if isinstance(item, Ended) and self._last_word is not None:
                    return self._last_word
                await self._send(item)
                if isinstance(item, Ended):
                    return CloseReason("ended", NORMAL)
        except TimeoutError:
            return SLOW
        except WebSocketDisconnect:
            return LEFT

    async def _send(self, item: LiveEvent | ReadyEvent) -> None:
        frame = item.frame() if isinstance(item, ReadyEvent) else event_frame(item, self._request_id)
        async with asyncio.timeout(self._settings.live_send_timeout_s):
            await self._socket.send_text(frame)
        if not isinstance(item, ReadyEvent):
            self._timer.event_sent(item, time.perf_counter())
        self._room.set()

    async def _watch_clock(self) -> None:
        """End a session that is silent for too long, or lasts too long."""
        idle_timeout_s, max_session_s = self._settings.live_idle_timeout_s, self._settings.live_max_session_s
        ends_at_s = self._loop.time() + max_session_s
        while not self._all_pushed:
            now_s = self._loop.time()
            if now_s >= ends_at_s:
                await self._stop(farewell_of(SessionTooLong(f"A live session lasts {max_session_s:g} s at most.")))
                return
            if self._congested or self._unanswered_flushes:
                self._active_s = now_s
            idle_at_s = self._active_s + idle_timeout_s
            if now_s >= idle_at_s:
                await self._stop(farewell_of(SessionIdle(f"Nothing was sent for {idle_timeout_s:g} s.")))
                return
            await asyncio.sleep(min(ends_at_s, idle_at_s) - now_s)

    async def _watch_connection(self) -> None:
        """End the session when the client is gone or the server wants to stop, which waits for answers, but not for long."""
        connection = self._connection
        await connection.changed.wait()
        farewell = LEFT
        if not connection.lost:
            connection.changed.clear()
            stopping = NotReady("The server is stopping.", retry_after_s=RETRY_AFTER_S)
            farewell = replace(farewell_of(stopping), close_code=RESTART)
            await self._stop(farewell)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_timeout_s / 2):
                    await connection.changed.wait()
        self._outbox.put(LEFT if connection.lost else farewell)

    async def _stop(self, farewell: CloseReason) -> None:
        """Hear nothing more, and say `farewell` once everything is answered; a session that is about to end just does."""
        if self._all_pushed or self._last_word is not None or self._hearing is None:
            return
        self._last_word = farewell
        self._hearing.cancel()
        await asyncio.wait([self._hearing])
        if self._audio is None:
            self._outbox.put(farewell)
        try:
            await self._end_audio()
        except ServeError:
            # The end of the audio is broken off anyway.
            self._outbox.put(farewell)
