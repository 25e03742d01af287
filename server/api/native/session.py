"""One live session between a client's WebSocket and the engine."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from server.api.context import RETRY_AFTER_S, ServerContext
from server.api.middleware import client_of
from server.api.native.messages import (
    DEFAULT_RATE_HZ,
    MAX_FRAME_BYTES,
    NORMAL,
    RESTART,
    CloseReason,
    MessageReader,
    ReadyEvent,
    SessionLimits,
    StartMessage,
    close_reason_of,
    event_frame,
    live_error_event,
)
from server.api.websocket import Connection
from server.audio.decode import Samples
from server.audio.pcm import PcmStream, SampleStream
from server.audio.stream import OpusStream
from server.engine.types.events import Delta, Ended, Failed, Flushed, Listened, LiveEvent, Partial, UtteranceDone
from server.engine.types.protocol import Engine
from server.engine.types.requests import Audio, ChangeInstruction, EndOfAudio, Flush
from server.errors import InvalidRequest, NotReady, ServeError, SessionIdle, SessionTooLong
from server.observability.live import SessionTimer

logger = logging.getLogger(__name__)

# Less audio than this waits for more.
LEAST_AUDIO_S = 0.01
# While more events wait to be sent, or flushes to be answered, no message is read.
MAX_WAITING = 64
LEFT = CloseReason("client_left")
SLOW = CloseReason("slow_client")

OutboxItem = LiveEvent | ReadyEvent | CloseReason


class InputBuffer:
    """Pushes the audio of a session into the engine, in pieces of at least `LEAST_AUDIO_S` except before a flush and at the end.

    A client can thus not make the engine take very many inputs for little audio. A new instruction goes with the audio or the
    flush that comes next, so of several in a row only the last reaches the engine.
    """

    def __init__(self, engine: Engine, session_id: str, timer: SessionTimer) -> None:
        self._engine = engine
        self._id = session_id
        self._timer = timer
        self._rate_hz = engine.sample_rate_hz
        self._pushed = 0
        self._waiting: list[Samples] = []
        self._change: ChangeInstruction | None = None

    @property
    def pushed_s(self) -> float:
        """Seconds of audio that the engine was given."""
        return self._pushed / self._rate_hz

    def add_audio(self, samples: Samples) -> None:
        if len(samples):
            self._waiting.append(samples)
        if sum(map(len, self._waiting)) >= LEAST_AUDIO_S * self._rate_hz:
            self._push_waiting()

    def change_instruction(self, change: ChangeInstruction) -> None:
        self._change = change

    def push_flush(self, flush: Flush) -> None:
        self._push_waiting()
        self._engine.push(self._id, flush)

    def push_end(self) -> None:
        self._push_waiting()
        self._engine.push(self._id, EndOfAudio())

    def _push_waiting(self) -> None:
        if self._change is not None:
            self._engine.push(self._id, self._change)
            self._change = None
        samples = np.concatenate(self._waiting) if self._waiting else np.empty(0, np.float32)
        self._waiting = []
        if len(samples):
            self._pushed += len(samples)
            self._timer.audio_came(len(samples) / self._rate_hz, self.pushed_s, time.perf_counter())
            self._engine.push(self._id, Audio(samples))


class Outbox:
    """A queue of events for the client, and of what ends the session. Belongs to the event loop.

    Only outdated partials are lost: of an utterance's partials the newest waits, and none waits beside the answer. Pieces of text
    that wait together become one.
    """

    def __init__(self) -> None:
        self._items: deque[OutboxItem] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: OutboxItem) -> None:
        last = self._items[-1] if self._items else None
        if isinstance(item, Delta) and isinstance(last, Delta):
            self._items[-1] = Delta(item.request_id, last.text + item.text)
            return
        if isinstance(item, Partial | UtteranceDone):
            self._remove_partial(item.utterance)
        self._items.append(item)
        self._filled.set()

    async def take(self) -> OutboxItem:
        """Return the next item, once there is one."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        return self._items.popleft()

    def _remove_partial(self, utterance: int) -> None:
        for index, item in enumerate(self._items):
            if isinstance(item, Partial) and item.utterance == utterance:
                del self._items[index]
                return


class StreamSession:
    """One accepted WebSocket, from its first message to its close. Call `run` once.

    One task reads the client's messages, one sends events, two watch the clock and the connection. The end of the session
    reaches the sending task through the outbox, as a `CloseReason`. The engine's session is aborted before the client is told
    that it is over. `place` is closed once the engine has the session.
    """

    def __init__(
        self, context: ServerContext, socket: WebSocket, reader: MessageReader, request_id: str, place: contextlib.ExitStack
    ) -> None:
        self._id = f"stream-{uuid.uuid4().hex}"
        self._context = context
        self._engine = context.engine
        self._settings = context.settings
        self._socket = socket
        self._connection: Connection = socket.state.connection
        self._reader = reader
        self._request_id = request_id
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._timer = SessionTimer(context.metrics.live)
        self._inputs = InputBuffer(self._engine, self._id, self._timer)
        self._outbox = Outbox()
        self._audio: SampleStream | None = None
        self._reading: asyncio.Task[None] | None = None
        # Set if the session is ended from here; sent once everything is answered.
        self._close_reason: CloseReason | None = None
        self._active_s = self._loop.time()
        self._listened_s = 0.0
        self._unanswered_flushes = 0
        self._is_starting = self._is_open = self._all_pushed = False
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Serve the session to its end. Raises nothing but `CancelledError`."""
        reason = await self._serve()
        self._context.metrics.live.sessions.labels(reason.outcome).inc()
        words = reason.error.message if reason.error is not None else reason.outcome
        logger.info("request %s: %.2f s of live audio: %s", self._request_id, self._inputs.pushed_s, words)
        await self._close(reason)

    async def _serve(self) -> CloseReason:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._reading = tasks.create_task(self._read_messages())
                watching = [tasks.create_task(self._watch_clock()), tasks.create_task(self._watch_connection())]
                reason = await self._send_events()
                for task in (self._reading, *watching):
                    task.cancel()
            return reason
        except Exception:
            logger.exception("Request %s met a bug.", self._request_id)
            return close_reason_of(ServeError("The server met an unexpected error."))
        finally:
            if self._audio is not None:
                self._audio.close()
            if self._is_open:
                self._engine.abort(self._id)

    async def _close(self, reason: CloseReason) -> None:
        if reason.close_code is None:
            return
        try:
            async with asyncio.timeout(self._settings.live_send_timeout_s):
                if reason.error is not None:
                    await self._socket.send_text(live_error_event(self._request_id, reason.error, fatal=True).frame())
                await self._socket.close(reason.close_code)
        except (TimeoutError, WebSocketDisconnect):
            logger.info("request %s: the client does not read its end", self._request_id)

    async def _read_messages(self) -> None:
        """Read what the client sends, until it makes an error or is gone."""
        try:
            audio = await self._start(await self._next_message())
            while True:
                await self._handle_message(await self._next_message(), audio)
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

    async def _start(self, text: str | bytes) -> SampleStream:
        if isinstance(text, bytes):
            raise InvalidRequest("The first message has to be a start, before any audio.")
        start = self._reader.read(text)
        if not isinstance(start, StartMessage):
            raise InvalidRequest("The first message has to be a start.", param="type")
        request = start.live_request(self._id, client_of(self._socket))
        rate_hz = start.sample_rate_hz or DEFAULT_RATE_HZ
        # The client is not idle while its constraint waits for its turn to be checked, and its audio for a decoder.
        self._is_starting = True
        try:
            if request.sampling.constraint is not None:
                await self._context.grammar_sandbox.check(request.sampling.constraint, request.client)
            if start.encoding == "ogg_opus":
                self._audio = await OpusStream.open(self._context.decode_pool, request.client)
            else:
                self._audio = PcmStream(rate_hz, self._engine.sample_rate_hz)
        finally:
            self._is_starting = False
            self._active_s = self._loop.time()
        self._place.close()
        self._engine.open_live(request, self._receive_event)
        self._is_open = True
        limits = SessionLimits(
            idle_timeout_s=self._settings.live_idle_timeout_s,
            max_session_s=self._settings.live_max_session_s,
            max_frame_bytes=MAX_FRAME_BYTES,
        )
        self._outbox.put(ReadyEvent(session_id=self._id, sample_rate_hz=rate_hz, encoding=start.encoding, limits=limits))
        return self._audio

    async def _handle_message(self, message: str | bytes, audio: SampleStream) -> None:
        if self._all_pushed:
            raise InvalidRequest("Nothing can follow the end.")
        if isinstance(message, bytes):
            await self._push_audio(audio.decode(message))
            return
        match self._reader.read(message):
            case StartMessage():
                raise InvalidRequest("The session has started already.", param="type")
            case EndOfAudio():
                await self._end_audio()
            case ChangeInstruction() as change:
                self._inputs.change_instruction(change)
            case Flush() as flush:
                self._unanswered_flushes += 1
                self._inputs.push_flush(flush)

    async def _end_audio(self) -> None:
        self._all_pushed = True
        if self._audio is not None:
            await self._push_audio(self._audio.finish())
            self._inputs.push_end()

    async def _push_audio(self, blocks: AsyncIterator[Samples]) -> None:
        """Push decoded audio as the engine follows: a few bytes may decode to much audio."""
        async for samples in blocks:
            self._inputs.add_audio(samples)
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while self._congested:
            self._room.clear()
            await self._room.wait()

    @property
    def _congested(self) -> bool:
        backlog_s = self._inputs.pushed_s - self._listened_s
        return backlog_s > self._settings.live_backlog_s or len(self._outbox) + self._unanswered_flushes > MAX_WAITING

    def _receive_event(self, event: LiveEvent) -> None:
        """Hand an event over from the engine's thread."""
        self._loop.call_soon_threadsafe(self._handle_event, event)

    def _handle_event(self, event: LiveEvent) -> None:
        self._active_s = self._loop.time()
        self._timer.event_came(event, time.perf_counter())
        match event:
            case Listened(audio_s=audio_s):
                self._listened_s = audio_s
                self._room.set()
                return
            case Failed(error=error):
                self._is_open = False
                reason = close_reason_of(error)
                # The engine took the session before, so it is now stopping.
                self._outbox.put(replace(reason, close_code=RESTART) if isinstance(error, NotReady) else reason)
                return
            case Ended():
                self._is_open = False
            case Flushed():
                self._unanswered_flushes -= 1
        self._outbox.put(event)

    async def _send_events(self) -> CloseReason:
        """Send events to the client up to the end of the session, and return the reason of that."""
        try:
            while True:
                item = await self._outbox.take()
                if isinstance(item, CloseReason):
                    return item
                if isinstance(item, Ended) and self._close_reason is not None:
                    return self._close_reason
                await self._send_event(item)
                if isinstance(item, Ended):
                    return CloseReason("ended", NORMAL)
        except TimeoutError:
            return SLOW
        except WebSocketDisconnect:
            return LEFT

    async def _send_event(self, event: LiveEvent | ReadyEvent) -> None:
        frame = event.frame() if isinstance(event, ReadyEvent) else event_frame(event, self._request_id)
        async with asyncio.timeout(self._settings.live_send_timeout_s):
            await self._socket.send_text(frame)
        if not isinstance(event, ReadyEvent):
            self._timer.event_sent(event, time.perf_counter())
        self._room.set()

    async def _watch_clock(self) -> None:
        """End a session that is silent for too long, or lasts too long."""
        idle_timeout_s, max_session_s = self._settings.live_idle_timeout_s, self._settings.live_max_session_s
        ends_at_s = self._loop.time() + max_session_s
        while not self._all_pushed:
            now_s = self._loop.time()
            if now_s >= ends_at_s:
                await self._stop(close_reason_of(SessionTooLong(f"A live session lasts {max_session_s:g} s at most.")))
                return
            if self._is_starting or self._congested or self._unanswered_flushes:
                self._active_s = now_s
            idle_at_s = self._active_s + idle_timeout_s
            if now_s >= idle_at_s:
                await self._stop(close_reason_of(SessionIdle(f"Nothing was sent for {idle_timeout_s:g} s.")))
                return
            await asyncio.sleep(min(ends_at_s, idle_at_s) - now_s)

    async def _watch_connection(self) -> None:
        """End the session when the client is gone, or the server stops, which waits a while for answers."""
        connection = self._connection
        await connection.changed.wait()
        reason = LEFT
        if not connection.lost:
            connection.changed.clear()
            stopping = NotReady("The server is stopping.", retry_after_s=RETRY_AFTER_S)
            reason = replace(close_reason_of(stopping), close_code=RESTART)
            await self._stop(reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_timeout_s / 2):
                    await connection.changed.wait()
        self._outbox.put(LEFT if connection.lost else reason)

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
            await self._end_audio()
        except ServeError:
            # The audio breaks off here anyway.
            self._outbox.put(reason)
