"""One request that a job answers, the same for every dialect: its place among the uploads, its body, its time limit, and its
answer, whole or in server-sent events. A dialect reads the body and writes the answer.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.api.call import Answer, Call, StreamWriter
from server.api.context import ServerContext
from server.api.middleware import CLIENT_LEFT_STATUS, client_of, request_id_of, span_of
from server.audio.length import longest_s
from server.audio.stream import Channel
from server.engine.types.events import Done, Failed
from server.engine.types.protocol import Engine
from server.errors import AudioTooLong, RequestTimedOut, ServeError
from server.jobs.events import EventQueue
from server.jobs.job import Job, build_job, find_channels, run_job
from server.jobs.long_audio import LongAudioJob
from server.observability.metrics import StreamOutcome

logger = logging.getLogger(__name__)

EVENT_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
# A line that clients skip; it keeps proxies from closing a silent connection.
HEARTBEAT = b": still working\n\n"
# For the last event, if the client did not even read the events before.
ERROR_TIMEOUT_S = 1.0

Body = TypeVar("Body")


async def answer_request(
    request: Request,
    context: ServerContext,
    read: Callable[[], Awaitable[Body]],
    make_call: Callable[[Body], Awaitable[Call]],
) -> Response:
    """Return the response to a request: `read` returns its body, and `make_call` what that asks for.

    Raises the `ServeError` of a request that is refused, or that fails before any of its answer is sent. A client that leaves
    ends the work.
    """
    started_s, client = time.perf_counter(), client_of(request)
    with contextlib.ExitStack() as held:
        retry_after_s = context.models.require_ready()
        held.enter_context(context.metrics.in_flight.track_inprogress())
        context.uploads.check(client, retry_after_s)
        try:
            body = await read()
            # Held from the end of the body until the engine has the request, and then decides about it.
            place = held.enter_context(contextlib.ExitStack())
            place.enter_context(context.uploads.place(client, retry_after_s))
            limit = TimeLimit(context.settings.request_timeout_s)
            async with while_client_stays(request, limit):
                call = await make_call(body)
                held.enter_context(_renamed_params(call.params))
                model = call.model or context.models.default
                await context.models.awaken(model)
                engine = held.enter_context(model.in_use())
                _check_room(engine, call)
                exchanges = []
                for channel in await _find_channels(context, engine, call):
                    job = await _build_job(context, engine, call, limit, started_s, channel)
                    held.callback(job.close)
                    exchanges.append(_Exchange(context, request, model.name, job, limit, started_s))
                # An uploaded file may be large, and the answer take long.
                call = dataclasses.replace(call, audio=b"")
                del body
                place.close()
                if call.stream_writer is None or call.channels_writer is not None:
                    return await _reply(exchanges, call)
                stream = EventStream(exchanges[0], call.stream_writer)
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


def _check_room(engine: Engine, call: Call) -> None:
    """Raise the engine's refusal of a call before its audio is decoded, if that is certain: not for audio that may be long,
    which has other places, nor with a deadline, which may be the first reason."""
    request = call.request
    is_short = not call.cut_at_pauses and longest_s(call.audio, call.raw) < engine.max_audio_s
    if is_short and request.deadline_s is None:
        engine.check_room(request.client, request.priority)


async def _find_channels(context: ServerContext, engine: Engine, call: Call) -> Sequence[Channel | None]:
    """Return the channels that are answered one by one; None stands for all in one."""
    if call.channels_writer is None:
        return (None,)
    return await find_channels(context.decode_pool, call.audio, call.request.client, call.raw, engine.max_audio_s)


async def _build_job(
    context: ServerContext, engine: Engine, call: Call, limit: "TimeLimit", started_s: float, channel: Channel | None
) -> Job:
    """Return the work of a call, or of one channel. Raises the error of its constraint or of its audio."""
    request = call.request
    if channel is not None:
        request = dataclasses.replace(request, id=f"{request.id}-{channel.number}")
    if (constraint := request.task.sampling.constraint) is not None:
        await context.grammar_sandbox.check(constraint, request.client)
    if request.deadline_s is not None:
        request = dataclasses.replace(request, deadline_s=request.deadline_s - (time.perf_counter() - started_s))
    try:
        job = await build_job(
            engine,
            context.decode_pool,
            call.audio,
            request,
            cut_at_pauses=call.cut_at_pauses,
            voice=call.voice,
            scope=call.scope,
            on_progress=limit.extend,
            count_audio=partial(context.usage.add_audio, request.client),
            raw=call.raw,
            channel=channel,
        )
    except AudioTooLong as error:
        if channel is None:
            raise
        refusal = error.message.removesuffix(".").partition(";")[0]
        message = f"{refusal}, the most for {channel.count} channels that are answered one by one."
        raise AudioTooLong(message, param=error.param) from None
    # The engine knows no deadline of a live session.
    if isinstance(job, LongAudioJob) and job.deadline_s is not None:
        limit.set_deadline(job.deadline_s)
    return job


@dataclass(frozen=True)
class _Exchange:
    """A request whose job is built; `started_s` is by `time.perf_counter`."""

    context: ServerContext
    request: Request
    model: str
    job: Job
    limit: "TimeLimit"
    started_s: float

    @property
    def request_id(self) -> str:
        return request_id_of(self.request)

    def finish(self, done: Done, first_text_s: float | None) -> Answer:
        """Count and log an answer, whose first text came at `first_text_s`, and return it with its times."""
        answer = make_answer(self.job, done, time.perf_counter() - self.started_s)
        waited_s = None if first_text_s is None else first_text_s - self.started_s
        self.context.metrics.count_answer(self.model, answer.done, answer.audio_s, waited_s)
        span_of(self.request).add_answer(self.model, answer.done, answer.audio_s)
        tokens, timing = done.usage.output_tokens, server_timing(answer)
        logger.info("request %s: %.2f s of audio, %d tokens, %s", self.request_id, answer.audio_s, tokens, timing)
        return answer


def make_answer(job: Job, done: Done, total_s: float) -> Answer:
    """Return the answer of a job that took `total_s`, the decoding of its audio included."""
    times = dataclasses.replace(done.times, audio_decode_s=job.audio_decode_s, total_s=total_s)
    done = dataclasses.replace(done, times=times)
    return Answer(done, job.audio_s, job.basis, job.sections, job.utterances, job.warnings)


def server_timing(answer: Answer) -> str:
    """Return the value of a Server-Timing header."""
    times_ms = answer.done.times.as_milliseconds()
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in times_ms.items())


async def _reply(exchanges: Sequence[_Exchange], call: Call) -> Response:
    """Return the whole reply, with an answer about each channel. The engine works on all together; one failure fails all."""
    tasks = [asyncio.create_task(_wait_for_answer(exchange)) for exchange in exchanges]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    writer = call.channels_writer
    response = call.writer.reply(answers[0]) if writer is None else writer.reply_channels(answers)
    response.headers["server-timing"] = server_timing(max(answers, key=lambda answer: answer.done.times.total_s))
    return response


async def _wait_for_answer(exchange: _Exchange) -> Answer:
    return exchange.finish(*await run_job(exchange.job))


class EventStream(Response):
    """The reply to one streamed request: call `start`, then `hold`, then the response itself.

    No byte is sent before the engine's first event, so a request that is refused or fails at once has an error's status. A client
    that leaves, or does not read within the time limit, ends the engine's work. A client that reads slowly gets the pieces of
    text that have piled up as one event.
    """

    def __init__(self, exchange: _Exchange, writer: StreamWriter) -> None:
        super().__init__(headers=EVENT_HEADERS, media_type="text/event-stream")
        # The length is not known.
        del self.headers["content-length"]
        self._exchange = exchange
        self._writer = writer
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
                        await send(events_message([self._writer.error_event(error)], more=False))
            finally:
                if not self._events.ended:
                    exchange.job.abort()
                exchange.context.metrics.count_stream(exchange.model, outcome, self._events.arrivals_s)

    async def _send_answer(self, send: Send) -> None:
        """Send events up to the last one. Raises the error of a request that fails."""
        heartbeat_s, writer = self._exchange.context.settings.stream_heartbeat_s, self._writer
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


class TimeLimit:
    """The end of a request: `timeout_s` after its last progress, and its deadline. Belongs to the running event loop."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._deadline_at_s = float("inf")
        self._ends_at_s = self._loop.time() + timeout_s
        self._deadline_changed: asyncio.Future[None] = self._loop.create_future()

    async def wait(self) -> None:
        """Sleep until the limit is reached, which may be moved meanwhile."""
        while (left_s := min(self._ends_at_s, self._deadline_at_s) - self._loop.time()) > 0:
            await asyncio.wait([self._deadline_changed], timeout=left_s)

    def extend(self) -> None:
        """Count the timeout from now on: the request has made progress."""
        self._ends_at_s = self._loop.time() + self._timeout_s

    def set_deadline(self, deadline_s: float) -> None:
        """End the request in `deadline_s` seconds, whatever progress it makes."""
        self._deadline_at_s = self._loop.time() + deadline_s
        self._deadline_changed.set_result(None)
        self._deadline_changed = self._loop.create_future()

    def error(self) -> RequestTimedOut:
        """Return the error for the client at the end."""
        if self._deadline_at_s < self._ends_at_s:
            return RequestTimedOut("The request's deadline has passed.")
        return RequestTimedOut(f"There was no answer within {self._timeout_s:g} s.")


@contextlib.asynccontextmanager
async def while_client_stays(request: Request, limit: TimeLimit) -> AsyncIterator[None]:
    """Cancel the block when the client leaves (raises `ClientDisconnect`) or the limit is reached (raises `RequestTimedOut`).

    The request's body must have been read before.
    """
    leaving = asyncio.create_task(_wait_for_disconnect(request))
    ending = asyncio.create_task(limit.wait())
    block = asyncio.timeout(None)

    def end_block(_task: object) -> None:
        # The block may have ended already.
        with contextlib.suppress(RuntimeError):
            block.reschedule(0)

    try:
        async with block:
            leaving.add_done_callback(end_block)
            ending.add_done_callback(end_block)
            yield
    except TimeoutError:
        if leaving.done():
            raise ClientDisconnect from None
        raise limit.error() from None
    finally:
        leaving.cancel()
        ending.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    # The body is read, so the only message that can still come is this one.
    while (await request.receive())["type"] != "http.disconnect":
        pass
