"""One connection of a Wyoming client: audio goes into a live session of the engine, and one transcript comes back."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from server.api.context import ServerContext
from server.api.live.engine_session import START, EngineSession
from server.api.live.outbox import close_reason_of
from server.api.options import DEFAULT_INSTRUCTION
from server.api.wyoming.events import (
    Transcribe,
    WyomingEvent,
    describe,
    event_bytes,
    read_audio_start,
    read_event,
    read_transcribe,
)
from server.audio.pcm import PcmStream
from server.audio.types import Samples
from server.audio.wave_header import PcmFormat
from server.engine.types.events import Failed, Listened, LiveEvent, Problem, UtteranceDone
from server.engine.types.requests import LiveRequest, SpeechTask
from server.errors import InvalidRequest, ModelNotLoaded, NotReady, ServeError, SessionIdle, SessionTooLong
from server.observability.live import Outcome, SessionTimer

logger = logging.getLogger(__name__)


class Recording:
    """The audio between `audio-start` and `audio-stop`, heard while it comes. Belongs to the event loop."""

    def __init__(self, context: ServerContext, client: str, options: Transcribe, format: PcmFormat) -> None:
        self._context = context
        self._model = context.models.find(options.name or None)
        task = SpeechTask(DEFAULT_INSTRUCTION, language=options.language_code, keywords=options.keywords)
        self._request = LiveRequest(f"wyoming-{uuid.uuid4().hex}", task, client, partials=False)
        self._audio = PcmStream(format, self._model.sample_rate_hz)
        self._texts: list[str] = []
        self._language: str | None = options.language_code
        self._error: ServeError | None = None
        self._changed = asyncio.Event()
        self._holds = contextlib.ExitStack()
        self._session: EngineSession | None = None

    async def push(self, data: bytes) -> None:
        """Take more audio, as the engine follows. Raises a `ServeError`, also that of a refusal by the engine."""
        await self._feed(self._audio.decode(data))
        if self._session is not None and self._session.end.audio_s > self._context.settings.live_max_session_s:
            raise SessionTooLong("The recording is too long.")

    async def finish(self) -> dict[str, str]:
        """Return the transcript once all audio is answered. Raises the `ServeError` of a failure."""
        await self._feed(self._audio.finish())
        if self._session is not None:
            self._session.push_end()
            while not self._session.has_ended:
                await self._next_change()
        self._check()
        language = {} if self._language is None else {"language": self._language}
        return {"text": " ".join(self._texts), **language}

    def close(self) -> None:
        """Forget what is not answered yet."""
        self._audio.close()
        if self._session is not None:
            self._session.abort()
        self._holds.close()

    async def _open(self) -> EngineSession:
        """Take a place in the engine."""
        retry_after_s = self._context.models.require_ready()
        with self._context.new_sockets.place(self._request.client, retry_after_s):
            await self._context.models.awaken(self._model)
            engine = self._holds.enter_context(self._model.in_use())
            self._model.attach(self._stop)
            self._holds.callback(self._model.detach, self._stop)
            timer = SessionTimer(self._context.metrics.live, self._model.name)
            return EngineSession(engine, self._request, timer, self._context.usage, START, self._take_event)

    async def _feed(self, blocks: AsyncIterator[Samples]) -> None:
        async for samples in blocks:
            self._check()
            if not len(samples):
                continue
            session = self._session = self._session or await self._open()
            session.add_audio(samples)
            while session.backlog_s > self._context.settings.live_backlog_s and not session.has_ended:
                await self._next_change()
        self._check()

    async def _next_change(self) -> None:
        self._check()
        self._changed.clear()
        await self._changed.wait()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _stop(self) -> None:
        self._error = ModelNotLoaded(f"The model `{self._model.name}` is being unloaded.")
        self._changed.set()

    def _take_event(self, event: LiveEvent) -> None:
        match event:
            case UtteranceDone(done=done):
                if done.text.strip():
                    self._texts.append(done.text.strip())
                self._language = self._language or done.language
            case Problem(error=error) | Failed(error=error):
                self._error = self._error or error
            case Listened():
                pass
        self._changed.set()


class WyomingConnection:
    """Answers the events of one client, in their order."""

    def __init__(self, context: ServerContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: str) -> None:
        self._context = context
        self._reader = reader
        self._writer = writer
        self._client = client
        self._options = Transcribe()
        self._recording: Recording | None = None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Answer the audio that has come, take no more, and end."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve the client until it leaves, makes an error, or is idle. Raises nothing but `CancelledError`."""
        outcome: Outcome = "client_left"
        try:
            await self._answer_events()
        except ServeError as error:
            outcome = close_reason_of(error).outcome
            with contextlib.suppress(OSError, TimeoutError):
                await self._send("error", {"text": error.message, "code": error.code})
        except (OSError, TimeoutError):
            outcome = "slow_client"
        except Exception:
            outcome = "server_error"
            logger.exception("A Wyoming client met a bug.")
        finally:
            self._forget()
        logger.info("A Wyoming client of %s is gone: %s", self._client, outcome)

    async def _answer_events(self) -> None:
        reading = asyncio.create_task(read_event(self._reader))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while (event := await self._wait_for(reading, stopping)) is not None:
                reading = asyncio.create_task(read_event(self._reader))
                if event.type == "audio-stop":
                    await self._send_transcript(reading)
                else:
                    await self._take(event)
        finally:
            await _end(reading)
            await _end(stopping)

    async def _wait_for(
        self, reading: asyncio.Task[WyomingEvent | None], stopping: asyncio.Task[Literal[True]]
    ) -> WyomingEvent | None:
        """Return the next event, or None behind the last. Raises `InvalidRequest`, `SessionIdle`, and `NotReady` at a stop."""
        idle_timeout_s = self._context.settings.live_idle_timeout_s
        done, _ = await asyncio.wait((reading, stopping), timeout=idle_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if stopping in done:
            if self._recording is not None:
                await self._send_transcript(reading)
            raise NotReady("The server is stopping.")
        if not done:
            raise SessionIdle("Nothing came for too long.")
        return reading.result()

    async def _take(self, event: WyomingEvent) -> None:
        match event.type:
            case "describe":
                await self._send("info", describe(model.name for model in self._context.models.models))
            case "ping":
                await self._send("pong", {"text": event.data.get("text")})
            case "transcribe":
                self._options = read_transcribe(event)
            case "audio-start":
                self._forget()
                format = read_audio_start(event).format
                self._recording = Recording(self._context, self._client, self._options, format)
            case "audio-chunk" if self._recording is not None:
                await self._recording.push(event.payload)
            case "audio-chunk":
                raise InvalidRequest("The event audio-chunk comes after audio-start.")
        # Every other event is for services of other kinds.

    async def _send_transcript(self, reading: asyncio.Task[WyomingEvent | None]) -> None:
        """Send the transcript, unless the client leaves before."""
        if self._recording is None:
            raise InvalidRequest("The event audio-stop comes after audio-start.")
        finishing = asyncio.create_task(self._recording.finish())
        try:
            await asyncio.wait((finishing, reading), return_when=asyncio.FIRST_COMPLETED)
            has_left = reading.done() and not reading.exception() and reading.result() is None
            if not has_left:
                await self._send("transcript", await finishing)
        finally:
            await _end(finishing)
        self._forget()
        self._options = Transcribe()

    async def _send(self, type: str, data: Mapping[str, object]) -> None:
        """Raises `TimeoutError` if the client does not read."""
        self._writer.write(event_bytes(type, data))
        async with asyncio.timeout(self._context.settings.live_send_timeout_s):
            await self._writer.drain()

    def _forget(self) -> None:
        if self._recording is not None:
            self._recording.close()
        self._recording = None


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task whose outcome is of no interest any more."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
