"""A session in the engine, as the WebSocket sees it: audio in small pieces goes in, events in the connection's times come out."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from server.api.access.limits import KeyUsage
from server.audio.types import Samples
from server.engine.types.events import (
    Ended,
    Failed,
    Flushed,
    Listened,
    LiveEvent,
    Partial,
    Problem,
    SpeechStarted,
    UtteranceDone,
    shift_words,
)
from server.engine.types.protocol import Engine
from server.engine.types.requests import Audio, ChangeInstruction, EndOfAudio, Flush, LiveRequest
from server.observability.live import SessionTimer

# Less audio than this waits for more.
LEAST_AUDIO_S = 0.01


@dataclass(frozen=True)
class Position:
    """The beginning of a session of the engine in all the audio of its connection, and the number of its first utterance."""

    audio_s: float = 0.0
    utterance: int = 0


START = Position()


class InputBuffer:
    """Pushes the audio of a session into the engine, in pieces of at least `LEAST_AUDIO_S` except before a flush and at the end.

    A client can thus not make the engine take very many inputs for little audio. A new instruction goes with the audio or the
    flush that comes next, so of several in a row only the last reaches the engine. Audio counts against the limits of its client.
    """

    def __init__(self, engine: Engine, request: LiveRequest, timer: SessionTimer, usage: KeyUsage, start_s: float = 0.0) -> None:
        self._engine = engine
        self._id = request.id
        self._client = request.client
        self._timer = timer
        self._usage = usage
        self._start_s = start_s
        self._rate_hz = engine.sample_rate_hz
        self._pushed = 0
        self._waiting: list[Samples] = []
        self._change: ChangeInstruction | None = None

    @property
    def pushed_s(self) -> float:
        """Seconds of audio that the engine was given."""
        return self._pushed / self._rate_hz

    @property
    def taken_s(self) -> float:
        """Seconds of audio that came, also those that wait for more."""
        return (self._pushed + sum(map(len, self._waiting))) / self._rate_hz

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
            end_s = self._start_s + self.pushed_s
            self._usage.add_audio(self._client, len(samples) / self._rate_hz)
            self._timer.audio_came(len(samples) / self._rate_hz, end_s, time.perf_counter())
            self._engine.push(self._id, Audio(samples))


class EngineSession:
    """One session in the engine. Belongs to the event loop on which it was made.

    A connection has one after another. `take_event` gets the events in the times and numbers of the whole connection, that begin
    for this session at `start`. The constructor raises a `ServeError` where the engine refuses at once; a later refusal is a
    `Failed`. After `Ended` or `Failed` the session `has_ended`.
    """

    def __init__(
        self,
        engine: Engine,
        request: LiveRequest,
        timer: SessionTimer,
        usage: KeyUsage,
        start: Position,
        take_event: Callable[[LiveEvent], None],
    ) -> None:
        self._engine = engine
        self._id = request.id
        self._start = start
        self._take_event = take_event
        self._loop = asyncio.get_running_loop()
        self._inputs = InputBuffer(engine, request, timer, usage, start.audio_s)
        self._listened_s = 0.0
        self._utterances = 0
        self._speaking: int | None = None
        # Whether each flush that is not answered yet came from the client.
        self._flushes: deque[bool] = deque()
        # After the end of the audio, which answers everything, so these are answered with it.
        self._late_flushes: list[Flush] = []
        self._is_ending = False
        self._ended = asyncio.Event()
        engine.open_live(request, self._receive_event)

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    @property
    def end(self) -> Position:
        """The end of the audio so far, and the number of the next utterance."""
        return Position(self._start.audio_s + self._inputs.taken_s, self._start.utterance + self._utterances)

    @property
    def backlog_s(self) -> float:
        """Seconds of audio that the engine has not listened to."""
        return self._inputs.pushed_s - self._listened_s

    @property
    def is_speaking(self) -> bool:
        """Whether an utterance has begun that is not answered yet."""
        return self._speaking is not None

    @property
    def unanswered_flushes(self) -> int:
        """How many flushes of the client are not answered yet."""
        return sum(self._flushes)

    def add_audio(self, samples: Samples) -> None:
        self._inputs.add_audio(samples)

    def change_instruction(self, change: ChangeInstruction) -> None:
        self._inputs.change_instruction(change)

    def push_flush(self, flush: Flush) -> None:
        if self._is_ending:
            self._late_flushes.append(flush)
            return
        self._flushes.append(True)
        self._inputs.push_flush(flush)

    def end_utterance(self) -> None:
        """End the utterance that is going on, if there is one. The client is told no `Flushed`."""
        self._flushes.append(False)
        self._inputs.push_flush(Flush("end-of-utterance"))

    def push_end(self) -> None:
        self._is_ending = True
        self._inputs.push_end()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    def abort(self) -> None:
        """Forget the session, if it has not ended."""
        if not self.has_ended:
            self._ended.set()
            self._engine.abort(self._id)

    def _receive_event(self, event: LiveEvent) -> None:
        """Hand an event over from the engine's thread."""
        self._loop.call_soon_threadsafe(self._handle_event, event)

    def _handle_event(self, event: LiveEvent) -> None:
        match event:
            case Listened(audio_s=audio_s):
                self._listened_s = audio_s
            case SpeechStarted(utterance=number):
                self._speaking = number
                self._utterances = number + 1
            case UtteranceDone() | Problem() if event.utterance == self._speaking:
                self._speaking = None
            case Flushed() if self._flushes and not self._flushes.popleft():
                return
            case Ended() | Failed():
                self._ended.set()
        if isinstance(event, Ended):
            for flush in self._late_flushes:
                self._take_event(Flushed(self._id, flush.marker))
        self._take_event(_shifted(event, self._start))


def _shifted(event: LiveEvent, start: Position) -> LiveEvent:
    """Return an event of a session that begins at `start` in the times and numbers of the connection."""
    if start == START:
        return event
    shift_s, first = start.audio_s, start.utterance
    match event:
        case Listened(audio_s=audio_s) | Ended(audio_s=audio_s):
            return replace(event, audio_s=audio_s + shift_s)
        case SpeechStarted():
            return replace(event, utterance=event.utterance + first, start_s=event.start_s + shift_s)
        case Partial():
            return replace(
                event,
                utterance=event.utterance + first,
                start_s=event.start_s + shift_s,
                stable_end_s=event.stable_end_s + shift_s,
                end_s=event.end_s + shift_s,
            )
        case UtteranceDone(done=done):
            if done.words is not None:
                done = replace(done, words=shift_words(done.words, shift_s))
            start_s, end_s = event.start_s + shift_s, event.end_s + shift_s
            return replace(event, utterance=event.utterance + first, start_s=start_s, end_s=end_s, done=done)
        case Problem(utterance=int(number)):
            return replace(event, utterance=number + first)
    return event
