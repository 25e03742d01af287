"""The way of one request that is answered by a job, the same for every dialect: its place at the door, its body, its time limit,
and its answer, whole or in server-sent events. A dialect reads the body and writes the answer.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.api.context import ServerContext
from server.api.disconnect import TimeLimit, while_client_stays
from server.api.formats import answer_segments
from server.api.middleware import CLIENT_LEFT_STATUS, client_of, request_id_of, span_of
from server.audio.raw import RawFormat
from server.audio.stream import Channel
from server.engine.types.events import Basis, Done, Failed, Segment, TokenLogprob
from server.engine.types.options import Scope as AnswerScope
from server.engine.types.options import VoiceOptions
from server.engine.types.protocol import Engine
from server.engine.types.requests import InstructRequest
from server.errors import AudioTooLong, ServeError
from server.jobs.events import EventQueue, ResultFuture
from server.jobs.job import Job, build_job, find_channels
from server.jobs.long_audio import LongAudioJob
from server.observability.metrics import StreamOutcome
from server.observability.traces import RequestSpan
from server.registry.registry import ServedModel

logger = logging.getLogger(__name__)

EVENT_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
# A line that clients skip; it keeps proxies from closing a silent connection.
HEARTBEAT = b": still working\n\n"
# For the last event, if the client did not even read the events before.
ERROR_TIMEOUT_S = 1.0

Body = TypeVar("Body")


@dataclass(frozen=True)
class Answer:
    """An answer with the times of all stages, and what is known of its audio.

    `basis`, `sections` and `utterances` are those of long audio.

    `warnings` says in sentences what of the audio was missing.
    """

    done: Done
    audio_s: float
    basis: Basis | None = None
    sections: int | None = None
    utterances: tuple[Segment, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The text as subtitles show it, as `answer_segments` has it."""
        return answer_segments(self.done, self.audio_s, self.utterances)

    @property
    def server_timing(self) -> str:
        """The value of a Server-Timing header."""
        times_ms = self.done.times.as_milliseconds()
        return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in times_ms.items())


class ReplyWriter(Protocol):
    """Writes the answer to one request in a dialect. The content of an event is what stands behind `data: `."""

    def reply(self, answer: Answer) -> Response:
        """Return the whole reply."""
        ...

    def first_events(self) -> Iterable[str]:
        """Return the contents of events before any text."""
        ...

    def text_event(self, text: str, logprobs: Sequence[TokenLogprob]) -> str:
        """Return the content of the event for a further piece of text."""
        ...

    def last_events(self, answer: Answer) -> Iterable[str]:
        """Return the contents of the events that end a stream."""
        ...

    def error_event(self, error: ServeError) -> str:
        """Return the content of the event that ends a stream which failed after its beginning."""
        ...


class ChannelsWriter(Protocol):
    """Writes the answers to one request whose channels are answered one by one."""

    def reply_channels(self, answers: Sequence[Answer]) -> Response:
        """Return the whole reply; the answers are in the order of the channels."""
        ...


@dataclass(frozen=True)
class Call:
    """A request in the engine's terms, without its audio, which is that of the file in `audio`; and how it is answered.

    `request.deadline_s` counts from the request's start. Without a `model` the default answers. With `cut_at_pauses` audio of any
    length is cut as long audio is, by `voice`, and answered by `scope`. `raw` is the format of a file without a header. `params`
    are the dialect's names for our fields, for errors. With a `channels_writer` each channel has an answer of its own, which that
    writes; there are no streams of these.
    """

    audio: bytes
    request: InstructRequest
    writer: ReplyWriter
    stream: bool = False
    model: ServedModel | None = None
    raw: RawFormat | None = None
    cut_at_pauses: bool = False
    voice: VoiceOptions = field(default_factory=VoiceOptions)
    scope: AnswerScope | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    channels_writer: ChannelsWriter | None = None


@dataclass(frozen=True)
class _Exchange:
    """A request whose job is built; `started_s` is by `time.perf_counter`."""

    context: ServerContext
    request_id: str
    span: RequestSpan
    model: str
    writer: ReplyWriter
    job: Job
    limit: TimeLimit
    started_s: float

    def finish(self, done: Done, first_text_s: float | None) -> Answer:
        """Count and log an answer, whose first text came at `first_text_s`, and return it with its times."""
        job, total_s = self.job, time.perf_counter() - self.started_s
        times = dataclasses.replace(done.times, audio_decode_s=job.audio_decode_s, total_s=total_s)
        answer = Answer(
            dataclasses.replace(done, times=times), job.audio_s, job.basis, job.sections, job.utterances, job.warnings
        )
        waited_s = None if first_text_s is None else first_text_s - self.started_s
        self.context.metrics.count_answer(self.model, answer.done, job.audio_s, waited_s)
        self.span.add_answer(self.model, answer.done, job.audio_s)
        tokens, timing = done.usage.output_tokens, answer.server_timing
        logger.info("request %s: %.2f s of audio, %d tokens, %s", self.request_id, job.audio_s, tokens, timing)
        return answer


async def answer_request(
    request: Request,
    context: ServerContext,
    read: Callable[[], Awaitable[Body]],
    understand: Callable[[Body], Awaitable[Call]],
) -> Response:
    """Return the response to a request: `read` gets its body, from which `understand` makes a call.

    Raises the `ServeError` of a request that is refused, or that fails before any of its answer is sent. A client that leaves
    ends the work.
    """
    started_s = time.perf_counter()
    with contextlib.ExitStack() as held:
        retry_after_s = context.models.require_ready()
        held.enter_context(context.metrics.in_flight.track_inprogress())
        context.uploads.check(client_of(request), retry_after_s)
        try:
            body = await read()
            # Held from the end of the body until the engine has the request, and then decides about it.
            place = held.enter_context(contextlib.ExitStack())
            place.enter_context(context.uploads.place(client_of(request), retry_after_s))
            limit = TimeLimit(context.settings.request_timeout_s)
            async with while_client_stays(request, limit):
                call = await understand(body)
                held.enter_context(_renamed_params(call.params))
                model = call.model or context.models.default
                await context.models.awaken(model)
                engine = held.enter_context(model.in_use())
                channels = await _find_channels(context, engine, request, call)
                exchanges = []
                for channel in channels:
                    job = await _build_job(context, engine, request, call, limit, started_s, channel)
                    held.callback(job.close)
                    exchanges.append(
                        _Exchange(
                            *(context, request_id_of(request), span_of(request), model.name),
                            *(call.writer, job, limit, started_s),
                        )
                    )
                exchange, *_ = exchanges
                streams, channels_writer = call.stream, call.channels_writer
                # An uploaded file may be large, and the answer take long.
                del body, call
                place.close()
                if channels_writer is not None:
                    return await _answer_channels(exchanges, channels_writer)
                if not streams:
                    return await _answer(exchange)
                stream = EventStream(exchange)
                await stream.start()
            # A streamed reply is not over when this function is.
            stream.hold(held.pop_all())
            return stream
        except ClientDisconnect:
            logger.info("request %s: the client left", request_id_of(request))
            # The client has left; the status is for the metrics.
            return Response(status_code=CLIENT_LEFT_STATUS)


@contextlib.contextmanager
def _renamed_params(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors of the block name fields as a dialect does: `names` maps our names to its own."""
    try:
        yield
    except ServeError as error:
        if error.param is not None:
            error.param = names.get(error.param, error.param)
        raise


async def _find_channels(context: ServerContext, engine: Engine, request: Request, call: Call) -> Sequence[Channel | None]:
    """Return the channels that are answered one by one; None stands for all in one."""
    if call.channels_writer is None:
        return (None,)
    return await find_channels(context.decode_pool, call.audio, client_of(request), call.raw, engine.max_audio_s)


async def _build_job(
    context: ServerContext,
    engine: Engine,
    request: Request,
    call: Call,
    limit: TimeLimit,
    started_s: float,
    channel: Channel | None,
) -> Job:
    """Return the work of a call, or of one channel. Raises the error of its constraint or of its audio."""
    engine_request = call.request
    if channel is not None:
        engine_request = dataclasses.replace(engine_request, id=f"{engine_request.id}-{channel.number}")
    if (constraint := engine_request.sampling.constraint) is not None:
        await context.grammar_sandbox.check(constraint, client_of(request))
    if engine_request.deadline_s is not None:
        passed_s = time.perf_counter() - started_s
        engine_request = dataclasses.replace(engine_request, deadline_s=engine_request.deadline_s - passed_s)
    try:
        job = await build_job(
            engine,
            context.decode_pool,
            call.audio,
            engine_request,
            cut_at_pauses=call.cut_at_pauses,
            voice=call.voice,
            scope=call.scope,
            on_progress=limit.extend,
            count_audio=partial(context.usage.add_audio, engine_request.client),
            raw=call.raw,
            channel=channel,
        )
    except AudioTooLong as error:
        if channel is None:
            raise
        message = f"{error.message.removesuffix('.')}, the most for {channel.count} channels that are answered one by one."
        raise AudioTooLong(message, param=error.param) from None
    # The engine knows no deadline of a live session.
    if isinstance(job, LongAudioJob) and job.deadline_s is not None:
        limit.set_deadline(job.deadline_s)
    return job


async def _answer(exchange: _Exchange) -> Response:
    """Return the whole reply at once."""
    answer = await _wait_for_answer(exchange)
    response = exchange.writer.reply(answer)
    response.headers["server-timing"] = answer.server_timing
    return response


async def _answer_channels(exchanges: Sequence[_Exchange], writer: ChannelsWriter) -> Response:
    """Return the reply with the answers about all channels, which the engine works on together. One failure fails all."""
    tasks = [asyncio.create_task(_wait_for_answer(exchange)) for exchange in exchanges]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    response = writer.reply_channels(answers)
    response.headers["server-timing"] = max(answers, key=lambda answer: answer.done.times.total_s).server_timing
    return response


async def _wait_for_answer(exchange: _Exchange) -> Answer:
    result, job = ResultFuture(), exchange.job
    job.start(result.put)
    try:
        done = await result.wait()
    except asyncio.CancelledError:
        job.abort()
        raise
    return exchange.finish(done, result.first_text_s)


class EventStream(Response):
    """The reply to one streamed request: call `start`, then `hold`, then the response itself.

    No byte is sent before the engine's first event, so a request that is refused or fails at once has an error's status. A client
    that leaves, or does not read within the time limit, ends the engine's work. A client that reads slowly gets the pieces of
    text that have piled up as one event.
    """

    def __init__(self, exchange: _Exchange) -> None:
        super().__init__(headers=EVENT_HEADERS, media_type="text/event-stream")
        # The length is not known.
        del self.headers["content-length"]
        self._exchange = exchange
        self._events = EventQueue()
        self._held = contextlib.ExitStack()

    async def start(self) -> None:
        """Start the job and wait for its first event. Raises the `ServeError` of a request that never gets one."""
        job = self._exchange.job
        job.start(self._events.put)
        try:
            await self._events.wait()
        except asyncio.CancelledError:
            job.abort()
            raise
        self._events.raise_failure()

    def hold(self, held: contextlib.ExitStack) -> None:
        """Close `held` when the reply is over."""
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._exchange
        with self._held:
            outcome: StreamOutcome = "broken_off"
            try:
                async with while_client_stays(Request(scope, receive), exchange.limit):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    await self._send_answer(send)
                outcome = "done"
            except ClientDisconnect:
                logger.info("request %s: the client left", exchange.request_id)
            except ServeError as error:
                outcome = "error"
                logger.warning("request %s: %s", exchange.request_id, error.message)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ERROR_TIMEOUT_S):
                        await send(events_message([exchange.writer.error_event(error)], more=False))
            finally:
                if not self._events.ended:
                    exchange.job.abort()
                exchange.context.metrics.count_stream(exchange.model, outcome, self._events.arrivals_s)

    async def _send_answer(self, send: Send) -> None:
        """Send events up to the last one. Raises the error of a request that fails."""
        heartbeat_s = self._exchange.context.settings.stream_heartbeat_s
        writer = self._exchange.writer
        if first := tuple(writer.first_events()):
            await send(events_message(first, more=True))
        while True:
            text, logprobs, terminal = self._events.take_all()
            if text or logprobs:
                await send(events_message([writer.text_event(text, logprobs)], more=True))
            if isinstance(terminal, Failed):
                raise terminal.error
            if terminal is not None:
                answer = self._exchange.finish(terminal, self._events.first_text_s)
                await send(events_message(writer.last_events(answer), more=False))
                return
            try:
                async with asyncio.timeout(heartbeat_s):
                    await self._events.wait()
            except TimeoutError:
                await send({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})


def events_message(contents: Iterable[str], *, more: bool) -> Message:
    """Return the part of the body for events; `more` says whether others follow."""
    body = "".join(f"data: {content}\n\n" for content in contents)
    return {"type": "http.response.body", "body": body.encode(), "more_body": more}
