"""One live session over a WebSocket, whatever its dialect: reading, sending, the clock, back-pressure, and the end.

A dialect is a translation: the messages of its clients become calls on the `SocketSession`, and events become its frames.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect

from server.api.context import ServerContext
from server.api.live.engine_session import START, EngineSession, Position
from server.api.live.outbox import NORMAL, RESTART, CloseReason, Outbox, close_reason_of
from server.api.middleware import client_of, request_id_of
from server.api.websocket import Connection
from server.audio.pcm import SampleStream
from server.audio.types import Samples
from server.engine.types.events import Ended, Failed, Flushed, Listened, LiveEvent
from server.engine.types.requests import ChangeInstruction, Flush, LiveRequest
from server.errors import ModelNotLoaded, NotReady, Overloaded, ServeError, SessionIdle, SessionTooLong
from server.observability.live import SessionTimer
from server.registry.registry import RETRY_AFTER_S, ServedModel

logger = logging.getLogger(__name__)

# While more items wait to be sent, or flushes to be answered, no message is read.
MAX_WAITING = 64
# How often the clock of a session with a place in the engine is looked at.
CLOCK_S = 0.1
# A microphone has stopped if nothing came for the silence that ends an utterance, the length of its last message, and this long.
LATE_S = 0.7
# A longer message is no piece of live audio.
LONGEST_PIECE_S = 2.0
LEFT = CloseReason("client_left")
SLOW = CloseReason("slow_client")


class Dialect(Protocol):
    """The wire format of one client, which may keep state: a session has one, and calls it from the event loop only.

    `idle_timeout_s` is how long the client may send nothing, not even a ping; None leaves that to pings of the server.
    `silence_s` is the silence that ends an utterance; None if only the client ends one.
    """

    @property
    def idle_timeout_s(self) -> float | None: ...

    @property
    def silence_s(self) -> float | None: ...

    async def take_message(self, message: str | bytes) -> None:
        """Follow a message of the client. A `ServeError` ends the session."""
        ...

    def frames_of(self, event: LiveEvent) -> Sequence[str]:
        """Return the frames for an event of the engine, which is sent now."""
        ...

    def closing_frames(self, reason: CloseReason) -> Sequence[str]:
        """Return the last frames before the connection is closed."""
        ...

    def survives(self, error: ServeError) -> bool:  # noqa: ARG002
        """Return whether the session goes on after the engine refused its audio for this error; usually not.

        The dialect is then given the `Failed`.
        """
        return False


class SocketSession:
    """One accepted WebSocket, from its first message to its close. Call `run` once.

    The `dialect` may be replaced at the first message.

    One task reads the client's messages, one sends frames, three watch the clock, the connection and the model. The end of the
    session reaches the sending task through the outbox, as a `CloseReason`. The engine's session is aborted before the client is
    told that it is over. `door` holds a place at the server's door while the engine has no session for this client: before the
    first audio, and again after `live_idle_timeout_s` without audio if the dialect `gives_place_back`.
    """

    # Set by `run`.
    dialect: Dialect

    def __init__(self, context: ServerContext, socket: WebSocket, door: contextlib.ExitStack) -> None:
        self.id = f"stream-{uuid.uuid4().hex}"
        self.request_id = request_id_of(socket)
        self.client = client_of(socket)
        self.context = context
        self.gives_place_back = True
        self._model: ServedModel | None = None
        self._model_use = contextlib.ExitStack()
        self._model_stops = asyncio.Event()
        self._settings = context.settings
        self._socket = socket
        self._connection: Connection = socket.state.connection
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._timer = SessionTimer(context.metrics.live, context.models.default.name)
        self._outbox = Outbox()
        self._request: LiveRequest | None = None
        self._audio: SampleStream | None = None
        self._engine_session: EngineSession | None = None
        self._engine_sessions = 0
        self._position = START
        # Held while audio goes into the engine's session, or that session is given up.
        self._feeding = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        # Set if the session is ended from here; sent once everything is answered.
        self._close_reason: CloseReason | None = None
        self._active_s = self._audio_at_s = self._loop.time()
        self._piece_s = 0.0
        self._stop_handled = True
        self._is_waiting = self._all_pushed = self._gives_back = False
        self._room = asyncio.Event()

    @property
    def model(self) -> ServedModel:
        """The model that hears the audio, by default the server's first."""
        return self._model or self.context.models.default

    def choose_model(self, model: ServedModel) -> None:
        """Have `model` hear the audio of the next session in the engine."""
        if self._model is not None:
            self._model.detach(self._model_stops.set)
        self._model = model
        self._timer.model = model.name
        model.attach(self._model_stops.set)

    @property
    def position(self) -> Position:
        """The end of the audio so far, in all audio of this connection, and the number of the next utterance."""
        return self._position if self._engine_session is None else self._engine_session.end

    def put(self, frame: str) -> None:
        """Send a text frame after everything that waits to be sent."""
        self._outbox.put(frame)

    def configure(self, request: LiveRequest, audio: SampleStream) -> None:
        """Set what becomes of audio from here on. The id of the request is replaced."""
        if self._audio is not None and self._audio is not audio:
            self._audio.close()
        self._request, self._audio = request, audio

    async def open(self) -> None:
        """Take a place in the engine now, not with the first audio. Raises the `ServeError` of a refusal."""
        if self._request is None:
            raise RuntimeError("the session is not configured")
        id = self.id if self._engine_sessions == 0 else f"{self.id}-{self._engine_sessions}"
        if self._model is None:
            self.choose_model(self.model)
        with self.waiting():
            await self.context.models.awaken(self.model)
        with contextlib.ExitStack() as use:
            engine = use.enter_context(self.model.in_use())
            request, usage = replace(self._request, id=id), self.context.usage
            self._engine_session = EngineSession(engine, request, self._timer, usage, self._position, self._handle_event)
            self._model_use = use.pop_all()
        self._engine_sessions += 1
        self._door.close()

    async def push_audio(self, data: bytes) -> None:
        """Decode audio and push it as the engine follows: a few bytes may decode to much audio. Raises a `ServeError`."""
        if self._audio is None:
            raise RuntimeError("the session is not configured")
        before_s = self.position.audio_s
        self._stop_handled = True
        await self._push(self._audio.decode(data))
        self._audio_at_s, self._stop_handled = self._loop.time(), False
        self._piece_s = min(self.position.audio_s - before_s, LONGEST_PIECE_S)

    def push_flush(self, flush: Flush) -> None:
        """End the utterance that is going on. The dialect is given a `Flushed` after everything that was heard before."""
        if self._engine_session is None:
            self._outbox.put(Flushed(self.id, flush.marker))
        else:
            self._engine_session.push_flush(flush)

    def change_instruction(self, change: ChangeInstruction) -> None:
        """Set the instruction for utterances to come."""
        if self._request is not None:
            self._request = replace(self._request, task=replace(self._request.task, instruction=change.instruction))
        if self._engine_session is not None:
            self._engine_session.change_instruction(change)

    async def renew(self) -> None:
        """Have all audio so far answered, its last samples included; the next audio begins a new session in the engine."""
        if self._audio is not None and self._engine_session is not None:
            await self._push(self._audio.finish())
        await self._give_place_back()

    async def end_audio(self) -> None:
        """Have all audio answered; then the session is closed."""
        self._all_pushed = True
        if self._audio is not None:
            await self._push(self._audio.finish())
        async with self._feeding:
            if self._engine_session is not None:
                self._engine_session.push_end()
            else:
                self._outbox.put(Ended(self.id, self._position.audio_s))

    @property
    def audio_has_ended(self) -> bool:
        """Whether `end_audio` was called."""
        return self._all_pushed

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Not count the block as idleness of the client, who waits for the server."""
        self._is_waiting = True
        try:
            yield
        finally:
            self._is_waiting = False
            self._active_s = self._loop.time()

    async def run(self, dialect: Dialect) -> None:
        """Serve the client until the end. Raises nothing but `CancelledError`."""
        self.dialect = dialect
        reason = await self._serve()
        self.context.metrics.live.sessions.labels(self.model.name, reason.outcome).inc()
        words = reason.error.message if reason.error is not None else reason.outcome
        logger.info("request %s: %.2f s of live audio: %s", self.request_id, self.position.audio_s, words)
        await self._close(reason)

    async def _serve(self) -> CloseReason:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._reading = tasks.create_task(self._read_messages())
                watches = (self._watch_clock(), self._watch_connection(), self._watch_model())
                watching = [tasks.create_task(watch) for watch in watches]
                reason = await self._send_items()
                for task in (self._reading, *watching):
                    task.cancel()
            return reason
        except Exception:
            logger.exception("Request %s met a bug.", self.request_id)
            return close_reason_of(ServeError("The server met an unexpected error."))
        finally:
            if self._audio is not None:
                self._audio.close()
            if self._engine_session is not None:
                self._engine_session.abort()
            self._model_use.close()
            if self._model is not None:
                self._model.detach(self._model_stops.set)

    async def _close(self, reason: CloseReason) -> None:
        if reason.close_code is None:
            return
        try:
            async with asyncio.timeout(self._settings.live_send_timeout_s):
                for frame in self.dialect.closing_frames(reason):
                    await self._socket.send_text(frame)
                await self._socket.close(reason.close_code)
        except (TimeoutError, WebSocketDisconnect):
            logger.info("request %s: the client does not read its end", self.request_id)

    async def _read_messages(self) -> None:
        """Read what the client sends, until it makes an error or is gone."""
        try:
            while True:
                await self.dialect.take_message(await self._next_message())
        except ServeError as error:
            self._outbox.put(close_reason_of(error))
        except WebSocketDisconnect:
            self._outbox.put(LEFT)

    async def _next_message(self) -> str | bytes:
        """Return the next message. While the engine or the client cannot follow, it stays in the network."""
        await self._wait_for_room()
        # Small messages that arrive together must not hold up other sessions.
        await asyncio.sleep(0)
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        self._active_s = self._loop.time()
        content: str | bytes = message["bytes"] if message.get("text") is None else message["text"]
        return content

    async def _push(self, blocks: AsyncIterator[Samples]) -> None:
        async for samples in blocks:
            async with self._feeding:
                if self._engine_session is None and len(samples):
                    await self.open()
                if self._engine_session is not None:
                    self._engine_session.add_audio(samples)
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while self._congested:
            self._room.clear()
            await self._room.wait()

    @property
    def _congested(self) -> bool:
        return self._backlog_s > self._settings.live_backlog_s or len(self._outbox) + self._unanswered_flushes > MAX_WAITING

    @property
    def _backlog_s(self) -> float:
        return 0.0 if self._engine_session is None else self._engine_session.backlog_s

    @property
    def _unanswered_flushes(self) -> int:
        return 0 if self._engine_session is None else self._engine_session.unanswered_flushes

    async def _give_place_back(self) -> None:
        """Have all audio answered and end the session in the engine, if there is one. Raises `Overloaded` if the door is full."""
        async with self._feeding:
            if (session := self._engine_session) is None:
                return
            self._gives_back = True
            session.push_end()
            await session.wait_ended()
            self._gives_back = False
            self._leave_engine(session)

    def _leave_engine(self, session: EngineSession) -> None:
        """Go on without a session that has ended, at the door. Raises `Overloaded` if that is full."""
        if self._engine_session is session:
            self._position, self._engine_session = session.end, None
            self._model_use.close()
            self._door.enter_context(self.context.new_sockets.place(self.client, RETRY_AFTER_S))

    def _handle_event(self, event: LiveEvent) -> None:
        self._active_s = self._loop.time()
        self._timer.event_came(event, time.perf_counter())
        match event:
            case Listened():
                self._room.set()
            case Failed(error=error):
                session = self._engine_session
                if session is None or not self.dialect.survives(error):
                    reason = close_reason_of(error)
                    # The engine took the session before, so it is now stopping.
                    self._outbox.put(replace(reason, close_code=RESTART) if isinstance(error, NotReady) else reason)
                    return
                try:
                    self._leave_engine(session)
                except Overloaded as full:
                    self._outbox.put(close_reason_of(full))
            case Ended() if self._gives_back:
                return
        self._outbox.put(event)

    async def _send_items(self) -> CloseReason:
        """Send frames to the client up to the end of the session, and return the reason of that."""
        try:
            while True:
                item = await self._outbox.take()
                if isinstance(item, CloseReason):
                    return item
                if isinstance(item, Ended) and self._close_reason is not None:
                    return self._close_reason
                await self._send_frames([item] if isinstance(item, str) else self.dialect.frames_of(item))
                if not isinstance(item, str):
                    self._timer.event_sent(item, time.perf_counter())
                if isinstance(item, Ended):
                    return CloseReason("ended", NORMAL)
        except TimeoutError:
            return SLOW
        except WebSocketDisconnect:
            return LEFT

    async def _send_frames(self, frames: Sequence[str]) -> None:
        for frame in frames:
            async with asyncio.timeout(self._settings.live_send_timeout_s):
                await self._socket.send_text(frame)
        self._room.set()

    async def _watch_clock(self) -> None:
        """End a session that is silent for too long, or lasts too long, and the utterance of a microphone that has stopped."""
        max_session_s = self._settings.live_max_session_s
        ends_at_s = self._loop.time() + max_session_s
        while not self._all_pushed:
            now_s = self._loop.time()
            if now_s >= ends_at_s:
                await self._stop(close_reason_of(SessionTooLong(f"A live session lasts {max_session_s:g} s at most.")))
                return
            if self._is_waiting or self._congested or self._unanswered_flushes:
                self._active_s = now_s
            idle_timeout_s = self.dialect.idle_timeout_s
            idle_at_s = ends_at_s
            if idle_timeout_s is not None:
                idle_at_s = max(self._active_s, self._connection.pinged_s) + idle_timeout_s
            if idle_timeout_s is not None and now_s >= idle_at_s:
                await self._stop(close_reason_of(SessionIdle(f"Nothing was sent for {idle_timeout_s:g} s.")))
                return
            self._end_quiet_speech(self.dialect.silence_s, now_s)
            try:
                if self._is_quiet(now_s):
                    await self._give_place_back()
            except Overloaded as error:
                await self._stop(close_reason_of(error))
                return
            wake_at_s = min(ends_at_s, idle_at_s)
            # The dialect's rules may change meanwhile.
            await asyncio.sleep(min(wake_at_s - now_s, CLOCK_S if self._engine_session is not None else 1.0))

    def _end_quiet_speech(self, silence_s: float | None, now_s: float) -> None:
        """End the utterance of a client that has stopped to send: no silence will come to end it."""
        session = self._engine_session
        if session is None or silence_s is None or self._stop_handled or self._congested:
            return
        if now_s - self._audio_at_s >= silence_s + self._piece_s + LATE_S:
            self._stop_handled = True
            if session.is_speaking or session.backlog_s > 0:
                session.end_utterance()

    def _is_quiet(self, now_s: float) -> bool:
        """Return whether the engine's session is given up, because no audio has come for long."""
        is_heard = self._backlog_s == 0 and not self._unanswered_flushes and not self._is_waiting
        return self.gives_place_back and is_heard and now_s - self._audio_at_s >= self._settings.live_idle_timeout_s

    async def _watch_connection(self) -> None:
        """End the session when the client is gone, or the server stops, which waits a while for answers."""
        connection = self._connection
        await connection.changed.wait()
        if connection.lost:
            self._outbox.put(LEFT)
            return
        connection.changed.clear()
        await self._finish(NotReady("The server is stopping.", retry_after_s=RETRY_AFTER_S))

    async def _watch_model(self) -> None:
        """End the session when its model is unloaded, which waits a while for answers."""
        await self._model_stops.wait()
        await self._finish(ModelNotLoaded(f"The model `{self.model.name}` is being unloaded."))

    async def _finish(self, error: NotReady) -> None:
        """Have everything answered within half of the drain's time, and end for this error."""
        reason = replace(close_reason_of(error), close_code=RESTART)
        await self._stop(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s / 2):
                await self._connection.changed.wait()
        self._outbox.put(LEFT if self._connection.lost else reason)

    async def _stop(self, reason: CloseReason) -> None:
        """Read no more, and close for this reason once everything is answered; a session about to end is left alone."""
        if self._all_pushed or self._close_reason is not None or self._reading is None:
            return
        self._close_reason = reason
        self._reading.cancel()
        await asyncio.wait([self._reading])
        if self._audio is None:
            self._outbox.put(reason)
        try:
            await self.end_audio()
        except ServeError:
            # The audio breaks off here anyway.
            self._outbox.put(reason)
