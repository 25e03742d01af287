"""A streamed reply: server-sent events, each a line `data:` of JSON that says its `type`."""

import asyncio
import contextlib
import logging
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.api.call import Call, while_client_stays
from server.api.native.schema import DeltaEvent, DoneEvent, ErrorEvent, chosen_tokens, done_event, error_event
from server.engine.types.events import Failed
from server.errors import ServeError
from server.jobs.events import EventQueue
from server.observability.metrics import StreamOutcome

logger = logging.getLogger(__name__)

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
# A line that clients skip; it keeps proxies from closing a silent connection.
HEARTBEAT = b": still working\n\n"
# For the last event, where the client did not even read those before.
ERROR_TIMEOUT_S = 1.0

EVENTS_DESCRIPTION: dict[str, Any] = {
    "schema": {
        "type": "string",
        "description": "With `stream=true`: lines `data: {...}`. Any number of `instruct.text.delta` with the next piece of text "
        "in `delta`, then one `instruct.text.done` with the fields of the whole reply, or one `error` with those of an error.",
    }
}


class EventStream(Response):
    """The reply to one streamed request: `begin`, then `hold`, then call it as the response that it is.

    Nothing is sent before the engine's first event, so a request that is refused or fails at once has an error's status.
    A client that leaves, or does not read within the time limit, ends the engine's work; one that reads slowly gets what has
    piled up as one delta.
    """

    def __init__(self, call: Call) -> None:
        super().__init__(headers=HEADERS, media_type="text/event-stream")
        # The length is not known.
        del self.headers["content-length"]
        self._call = call
        self._inbox = EventQueue()
        self._held = contextlib.ExitStack()

    async def begin(self) -> None:
        """Start the work and wait for its first event. Raises the `ServeError` of a request that never gets one."""
        work = self._call.work
        work.start(self._inbox.deliver)
        try:
            await self._inbox.wait()
        except asyncio.CancelledError:
            work.abort()
            raise
        self._inbox.raise_failure()

    def hold(self, held: contextlib.ExitStack) -> None:
        """Close `held` when the reply is over."""
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            outcome: StreamOutcome = "broken_off"
            try:
                async with while_client_stays(Request(scope, receive), self._call.limit):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    await self._send_answer(send)
                outcome = "done"
            except ClientDisconnect:
                logger.info("request %s: the client left", self._call.request_id)
            except ServeError as error:
                outcome = "error"
                logger.warning("request %s: %s", self._call.request_id, error.message)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ERROR_TIMEOUT_S):
                        await send(message(error_event(self._call.request_id, error), more=False))
            finally:
                if not self._inbox.ended:
                    self._call.work.abort()
                self._call.context.metrics.count_stream(outcome, self._inbox.arrivals_s)

    async def _send_answer(self, send: Send) -> None:
        """Events up to the last one. Raises the error of a request that fails."""
        heartbeat_s = self._call.context.settings.stream_heartbeat_s
        while True:
            text, logprobs, terminal = self._inbox.take()
            if text or logprobs:
                event = DeltaEvent(delta=text, logprobs=chosen_tokens(logprobs) or None)
                await send(message(event, more=True))
            if isinstance(terminal, Failed):
                raise terminal.error
            if terminal is not None:
                reply = self._call.reply(terminal, self._inbox.first_text_s)
                await send(message(done_event(reply), more=False))
                return
            try:
                async with asyncio.timeout(heartbeat_s):
                    await self._inbox.wait()
            except TimeoutError:
                await send({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})


def message(event: DeltaEvent | DoneEvent | ErrorEvent, *, more: bool) -> Message:
    """The event as a part of the body; whether more are to come."""
    # An error's empty fields belong to its shape.
    content = event.model_dump_json(exclude_none=not isinstance(event, ErrorEvent))
    return {"type": "http.response.body", "body": f"data: {content}\n\n".encode(), "more_body": more}
