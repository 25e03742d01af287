"""The dialect of OpenAI's Realtime API for transcription sessions: its events in and out."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.api.base64_audio import decode_base64
from server.api.body import parse_beside_loop
from server.api.live.outbox import CloseReason
from server.api.live.session import Dialect, SocketSession
from server.api.openai_realtime import events
from server.api.openai_realtime.events import BetaShape, Item, Shape
from server.api.openai_realtime.schema import Append, BetaSession, Session, SessionOptions, parse, read_object
from server.audio.pcm import PcmStream
from server.engine.types.events import Failed, Flushed, LiveEvent, Partial, Problem, SpeechStarted, UtteranceDone
from server.engine.types.requests import Flush
from server.errors import InvalidRequest, ServeError

# OpenAI's limit on the audio of one message, and what it and the rest take as base64 in JSON.
MAX_APPEND_BYTES = 15 * 2**20
MAX_MESSAGE_BYTES = MAX_APPEND_BYTES // 3 * 4 + 65_536
# Audio that is decoded at a time, so that a large message holds up no other session.
PIECE_BYTES = 65_536
# An utterance that is ended by a flush began at least 50 ms before it; the next one may begin a window, 32 ms, before it.
FLUSH_SLACK_S = 0.04
COMMIT_EMPTY = "input_audio_buffer_commit_empty"


@dataclass(frozen=True)
class Boundary:
    """A commit or a clear of the client that the engine has not come to yet, at `audio_s` of the audio.

    Without voice detection a commit ends an `item`. `commits` is the number of items that had been committed when it came.
    """

    kind: Literal["commit", "clear"]
    audio_s: float
    event_id: object
    commits: int
    item: Item | None = None


class RealtimeDialect(Dialect):
    """`Dialect` of a transcription session. Errors of the client are sent as events and end nothing.

    With voice detection an item is an utterance; without it, an item is all speech between two commits. An item's deltas may come
    before it is committed.
    """

    def __init__(self, session: SocketSession, *, model: str, beta: bool = False) -> None:
        self._session = session
        # An alias of the default in a later message does not take back what the address says.
        self._first_model = session.model
        self._options = SessionOptions()
        expires_at = int(time.time() + session.context.settings.live_max_session_s)
        self._shape_arguments = (events.make_id("sess"), expires_at, model)
        self._shape = (BetaShape if beta else Shape)(*self._shape_arguments)
        self._markers = map(str, itertools.count())
        # By the marker of the flush that goes with each; oldest first.
        self._boundaries: dict[str, Boundary] = {}
        # By the number of the utterance: those that are not answered.
        self._items: dict[int, Item] = {}
        # Without voice detection: the item that the next commit ends.
        self._open_item = Item()
        # The audio of the last commit or clear.
        self._boundary_s = 0.0
        self._last_id: str | None = None
        self._commits = 0
        # After the engine refused the audio, it is dropped until the session is updated.
        self._refused = False
        self._configure()
        session.put(self._shape.created(self._options))

    @property
    def idle_timeout_s(self) -> None:
        """This protocol has no keep-alive message: a client that answers pings may stay."""
        return None

    @property
    def silence_s(self) -> float | None:
        return None if self._options.turn_detection is None else self._options.turn_detection.silence_s

    async def take_message(self, message: str | bytes) -> None:
        event_id: object = None
        try:
            if isinstance(message, bytes):
                raise InvalidRequest("Messages are JSON objects in text frames.")
            content = await parse_beside_loop(read_object, message)
            event_id = content.get("event_id")
            await self._follow(content, event_id)
        except InvalidRequest as error:
            self._session.put(events.error_frame(error, event_id))

    def frames_of(self, event: LiveEvent) -> Sequence[str]:
        match event:
            case SpeechStarted(utterance=number, start_s=start_s):
                return self._begin_utterance(number, start_s)
            case Partial(utterance=number, stable=stable):
                item = self._items.get(number)
                return () if item is None else events.delta(item, item.next_delta(stable))
            case UtteranceDone(utterance=number):
                return self._end_utterance(event, self._items.pop(number, None))
            case Problem(error=error, utterance=number):
                item = None if number is None else self._items.pop(number, None)
                return (events.error_frame(error),) if item is None else self._fail_utterance(item, error)
            # The boundaries before a failure are not passed any more.
            case Flushed(marker=marker) if marker in self._boundaries:
                return self._pass_boundary(self._boundaries.pop(marker))
            case Failed(error=error):
                return (events.error_frame(error), *self._fail_items(error))
        return ()

    def closing_frames(self, reason: CloseReason) -> Sequence[str]:
        return () if reason.error is None else (events.error_frame(reason.error),)

    def survives(self, error: ServeError) -> bool:
        # The options do not fit the model, so the client may set others.
        self._refused = isinstance(error, InvalidRequest)
        return self._refused

    async def _follow(self, content: dict[str, Any], event_id: object) -> None:
        match content["type"]:
            case "session.update":
                await self._update(self._options.updated(parse(Session, content.get("session", {}), "session")))
            case "transcription_session.update":
                self._shape = BetaShape(*self._shape_arguments)
                await self._update(self._options.updated_beta(parse(BetaSession, content.get("session", {}), "session")))
            case "input_audio_buffer.append":
                await self._append(await parse_beside_loop(decode_audio, parse(Append, content).audio))
            case "input_audio_buffer.commit":
                self._commit(event_id)
            case "input_audio_buffer.clear":
                self._clear(event_id)
            case other:
                raise InvalidRequest(f"A transcription session has no event {other[:64]!r}.", param="type")

    async def _update(self, options: SessionOptions) -> None:
        name, models = options.transcription.model, self._session.context.models
        model = self._first_model if name is None or name in models.aliases else models.find_named(name)
        before, self._refused = self._options, False
        if (
            options.live_request("") != before.live_request("")
            or options.format != before.format
            or model is not self._session.model
        ):
            await self._session.renew()
            self._session.choose_model(model)
            if before.turn_detection is None and options.turn_detection is not None and self._open_item.answers:
                self._commit_open_item(None)
            self._options = options
            self._configure()
        self._options = options
        self._session.put(self._shape.updated(options))

    def _configure(self) -> None:
        session = self._session
        stream = PcmStream(self._options.format.pcm_format(), session.model.sample_rate_hz)
        session.configure(self._options.live_request(session.client), stream)

    async def _append(self, audio: bytes) -> None:
        if self._refused:
            return
        try:
            for start in range(0, len(audio), PIECE_BYTES):
                await self._session.push_audio(audio[start : start + PIECE_BYTES])
        except InvalidRequest:
            # The rest of a file that cannot be read, or audio that the engine refuses: one error is enough.
            self._refused = True
            self._configure()
            raise

    def _commit(self, event_id: object) -> None:
        if self._options.turn_detection is not None:
            self._push_boundary("commit", event_id)
        elif self._session.position.audio_s > self._boundary_s:
            self._commit_open_item(event_id)
        else:
            self._session.put(_commit_is_empty(event_id))

    def _commit_open_item(self, event_id: object) -> None:
        item, self._open_item = self._open_item, Item()
        # The client is told of earlier clears first.
        if not any(boundary.kind == "clear" for boundary in self._boundaries.values()):
            for frame in self._committed(item):
                self._session.put(frame)
        self._push_boundary("commit", event_id, item)

    def _clear(self, event_id: object) -> None:
        item, self._open_item = self._open_item, Item()
        self._push_boundary("clear", event_id, item)

    def _push_boundary(self, kind: Literal["commit", "clear"], event_id: object, item: Item | None = None) -> None:
        """End the utterance that is going on."""
        marker, self._boundary_s = next(self._markers), self._session.position.audio_s
        self._boundaries[marker] = Boundary(kind, self._boundary_s, event_id, self._commits, item)
        self._session.push_flush(Flush(marker))

    def _pass_boundary(self, boundary: Boundary) -> Sequence[str]:
        if boundary.kind == "clear":
            later = itertools.takewhile(lambda each: each.kind == "commit", self._boundaries.values())
            items = [each.item for each in later if each.item is not None]
            return (events.cleared(), *(frame for item in items for frame in self._committed(item)))
        if boundary.item is not None:
            return (events.completed(boundary.item),)
        return () if self._commits > boundary.commits else (_commit_is_empty(boundary.event_id),)

    def _begin_utterance(self, number: int, start_s: float) -> Sequence[str]:
        if self._options.turn_detection is not None:
            # An utterance that is over and waits for its answer.
            stopped = [frame for earlier in self._items.values() for frame in self._stop_speech(earlier, start_s)]
            item = self._items[number] = Item()
            return (*stopped, events.speech_started(item, start_s))
        boundary = self._boundary_after(start_s)
        self._items[number] = self._open_item if boundary is None or boundary.item is None else boundary.item
        return ()

    def _boundary_after(self, start_s: float) -> Boundary | None:
        """Return the first commit or clear behind an utterance that begins at `start_s`."""
        return next((each for each in self._boundaries.values() if start_s < each.audio_s - FLUSH_SLACK_S), None)

    def _end_utterance(self, event: UtteranceDone, item: Item | None) -> Sequence[str]:
        if item is None or self._is_cleared(event.start_s, event.end_s):
            return ()
        delta = events.delta(item, item.add_answer(event.done))
        if self._options.turn_detection is None:
            return delta
        return (*self._stop_speech(item, event.end_s), *self._committed(item), *delta, events.completed(item))

    def _stop_speech(self, item: Item, end_s: float) -> Sequence[str]:
        """Tell once that the speech of an item is over, before the next speech begins."""
        if item.has_stopped:
            return ()
        item.has_stopped = True
        return (events.speech_stopped(item, end_s),)

    def _fail_utterance(self, item: Item, error: ServeError) -> Sequence[str]:
        item.error = error
        if self._options.turn_detection is None:
            return ()
        return (*self._committed(item), events.completed(item))

    def _fail_items(self, error: ServeError) -> Sequence[str]:
        """Report the failure of all that was committed and not answered."""
        frames: list[str] = []
        while self._boundaries:
            boundary = self._boundaries.pop(next(iter(self._boundaries)))
            if boundary.item is not None:
                boundary.item.error = error
                frames += self._pass_boundary(boundary)
        self._items.clear()
        return frames

    def _is_cleared(self, start_s: float, end_s: float) -> bool:
        """Return whether an utterance was still going on when the client cleared its buffer."""
        boundary = self._boundary_after(start_s)
        if boundary is None or boundary.kind == "commit":
            return False
        # Speech that was over before a clear has been committed by the voice detector.
        return self.silence_s is None or end_s > boundary.audio_s - self.silence_s + 2 * FLUSH_SLACK_S

    def _committed(self, item: Item) -> Sequence[str]:
        previous_id, self._last_id = self._last_id, item.id
        self._commits += 1
        return (events.committed(item, previous_id), *self._shape.item_events(item, previous_id))


def _commit_is_empty(event_id: object) -> str:
    error = InvalidRequest("There is no speech to commit since the last commit.")
    return events.error_frame(error, event_id, COMMIT_EMPTY)


def decode_audio(audio: str) -> bytes:
    """Return the bytes of audio in base64. Raises `InvalidRequest`."""
    data = decode_base64(audio, "audio")
    if len(data) > MAX_APPEND_BYTES:
        raise InvalidRequest(f"A message has at most {MAX_APPEND_BYTES} bytes of audio.", param="audio")
    return data
