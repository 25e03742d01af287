"""Long audio, cut at its pauses by a live session of the engine and answered as one request."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from server.audio.stream import AudioStream
from server.audio.types import Samples
from server.engine.types.events import (
    Basis,
    Delta,
    Done,
    Ended,
    Event,
    Failed,
    FinishReason,
    Listened,
    LiveEvent,
    Problem,
    Segment,
    Speculation,
    StageTimes,
    TokenLogprob,
    Usage,
    UtteranceDone,
    Word,
)
from server.engine.types.options import Scope, VoiceOptions
from server.engine.types.protocol import Engine
from server.engine.types.requests import Audio, EndOfAudio, InstructRequest, LiveRequest
from server.errors import InvalidRequest, NotReady, ServeError

logger = logging.getLogger(__name__)

BLOCK_S = 1.0
# Seconds of audio that may wait in the engine to be listened to.
AHEAD_S = 10.0
VOICE = VoiceOptions()

CountAudio = Callable[[float], None]

Sums = TypeVar("Sums", Usage, StageTimes, Speculation)


class LongAudioJob:
    """`Job` on a file whose beginning is decoded already, as `request.audio`; the rest is decoded no faster than the engine
    listens.

    The first event comes, perhaps without text, as soon as the engine has begun. `on_progress` is called at every sign of
    progress, and `count_audio` with the seconds of audio that the engine was given. Belongs to the event loop on which it was
    made. The constructor raises `InvalidRequest` for word times of an instruction that is no transcription.
    """

    # Set by `start`.
    _on_event: Callable[[Event], None]
    _feeding: asyncio.Task[None]

    def __init__(
        self,
        engine: Engine,
        request: InstructRequest,
        rest: AudioStream,
        audio_decode_s: float,
        on_progress: Callable[[], None],
        count_audio: CountAudio,
        voice: VoiceOptions = VOICE,
        scope: Scope | None = None,
    ) -> None:
        self.audio_decode_s = audio_decode_s
        self.deadline_s = request.deadline_s
        self._engine = engine
        self._request = live_request_from(request, voice, scope, transcribes=engine.transcribes(request.task.instruction))
        self._head = request.audio
        self._rest = rest
        self._on_progress = on_progress
        self._count_audio = count_audio
        self._aggregator = LongAudioAggregator(self._request)
        self._pushed_s = 0.0
        self._listened = asyncio.Event()
        self._has_begun = self._all_pushed = self._has_ended = False
        self._loop = asyncio.get_running_loop()

    @property
    def id(self) -> str:
        return self._request.id

    @property
    def audio_s(self) -> float:
        return self._aggregator.audio_s

    @property
    def basis(self) -> Basis:
        return self._aggregator.basis

    @property
    def sections(self) -> int:
        return self._aggregator.sections

    @property
    def utterances(self) -> tuple[Segment, ...]:
        return tuple(self._aggregator.utterances)

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._rest.warnings

    def start(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._engine.open_live(self._request, self._receive_event)
        self._feeding = asyncio.create_task(self._feed_audio())

    def abort(self) -> None:
        self._has_ended = True
        self._feeding.cancel()
        self._engine.abort(self.id)

    def close(self) -> None:
        self._rest.close()

    def _receive_event(self, event: LiveEvent) -> None:
        """Hand an event over from the engine's thread."""
        self._loop.call_soon_threadsafe(self._handle_event, event)

    def _handle_event(self, event: LiveEvent) -> None:
        if self._has_ended:
            return
        self._on_progress()
        combined = self._aggregator.add_event(event)
        match event, combined:
            case Problem(), Failed():
                self._fail(combined.error)
            case Ended(), Done() if not self._all_pushed:
                # A server that stops ends its sessions, but half of the audio is no answer.
                self._fail(NotReady("The server is stopping.", retry_after_s=1))
            case _, Done() | Failed():
                self._has_ended = True
                self._feeding.cancel()
                self._on_event(combined)
            case _, Delta():
                self._has_begun = True
                self._on_event(combined)
            case Listened(), None:
                self._listened.set()
                if not self._has_begun:
                    self._has_begun = True
                    self._on_event(Delta(self.id, ""))

    def _fail(self, error: ServeError) -> None:
        """End the request for a reason that the engine does not know."""
        self.abort()
        self._on_event(Failed(self.id, error))

    async def _feed_audio(self) -> None:
        try:
            async for block in self._blocks():
                # While this waits, decoding waits too.
                while self._pushed_s + BLOCK_S - self._aggregator.listened_s > AHEAD_S:
                    self._listened.clear()
                    await self._listened.wait()
                block_s = len(block) / self._engine.sample_rate_hz
                self._pushed_s += block_s
                self._engine.push(self.id, Audio(block))
                self._count_audio(block_s)
            self._all_pushed = True
            self._engine.push(self.id, EndOfAudio())
        except ServeError as error:
            self._fail(error)
        except Exception:
            logger.exception("request %s: long audio met a bug", self.id)
            self._fail(ServeError("The server met an unexpected error."))

    async def _blocks(self) -> AsyncIterator[Samples]:
        """Yield all samples in blocks of `BLOCK_S`, float32 at the engine's rate."""
        block_samples = int(BLOCK_S * self._engine.sample_rate_hz)
        for start in range(0, len(self._head), block_samples):
            yield self._head[start : start + block_samples]
        while not self._rest.ended:
            started_s = time.perf_counter()
            block = await self._rest.read(block_samples)
            self.audio_decode_s += time.perf_counter() - started_s
            if len(block):
                yield block


def live_request_from(
    request: InstructRequest, voice: VoiceOptions = VOICE, scope: Scope | None = None, *, transcribes: bool
) -> LiveRequest:
    """Return the session that answers a request on long audio, cut by `voice`; `transcribes` says whether its instruction asks
    for a transcript.

    Without a `scope` a transcript is one of each utterance, and any other answer is about the whole recording. Raises
    `InvalidRequest` for word times without a transcript.
    """
    if request.task.word_times != "none" and not transcribes:
        raise InvalidRequest("Times of words and subtitles are offered for transcription only.", param="timestamps")
    scope = scope or ("utterance" if transcribes else "recording")
    return LiveRequest(request.id, request.task, request.client, request.priority, voice, scope, partials=False)


class LongAudioAggregator:
    """Combines the events of a live session into those of one request. Pure.

    The answer is the texts of the `utterances` joined with single spaces, or under the scope `recording` the text about all of
    them. Usage and times are summed. A problem with one utterance fails the whole request.
    """

    def __init__(self, request: LiveRequest) -> None:
        self.listened_s = 0.0
        self.audio_s = 0.0
        self.basis: Basis = "utterances"
        self.sections = 1
        self.utterances: list[Segment] = []
        self._request = request
        self._logprobs: list[TokenLogprob] = []
        self._words: list[Word] | None = [] if request.task.word_times != "none" else None
        self._language: str | None = None
        self._finish_reason: FinishReason = "no_speech"
        self._usage = Usage(0, 0, 0)
        self._times = StageTimes()
        self._speculation = Speculation()

    def add_event(self, event: LiveEvent) -> Event | None:
        """Return the request's event that follows from this one, if any. A `Done` or `Failed` is the last."""
        match event:
            case Listened():
                self.listened_s = event.audio_s
            case UtteranceDone():
                self._add_costs(event.done)
                return self._add_text(event) if self._request.scope == "utterance" and event.done.text else None
            case Delta() | Failed():
                return event
            case Problem():
                return Failed(self._request.id, event.error)
            case Ended():
                return self._answer(event)
        return None

    def _add_costs(self, done: Done) -> None:
        self._usage = _sum(self._usage, done.usage)
        self._times = _sum(self._times, done.times)
        self._speculation = _sum(self._speculation, done.speculation)

    def _add_text(self, event: UtteranceDone) -> Delta:
        done = event.done
        delta = Delta(self._request.id, f" {done.text}" if self.utterances else done.text, done.logprobs or ())
        self.utterances.append(Segment(done.text, event.start_s, event.end_s))
        self._logprobs += delta.logprobs
        self._words = None if self._words is None or done.words is None else [*self._words, *done.words]
        self._language = self._language or done.language
        if self._finish_reason != "length":
            self._finish_reason = done.finish_reason
        return delta

    def _answer(self, ended: Ended) -> Done:
        self.audio_s, self.basis, self.sections = ended.audio_s, ended.basis, ended.sections
        if (answer := ended.answer) is not None:
            self._add_costs(answer)
            text, finish_reason, logprobs, words = answer.text, answer.finish_reason, answer.logprobs, answer.words
        else:
            text, finish_reason = " ".join(each.text for each in self.utterances), self._finish_reason
            logprobs = None if self._request.task.sampling.logprobs is None else tuple(self._logprobs)
            words = None if self._words is None else tuple(self._words)
        usage, times, speculation = self._usage, self._times, self._speculation
        return Done(
            self._request.id,
            text,
            finish_reason,
            usage,
            times,
            speculation,
            logprobs=logprobs,
            words=words,
            language=self._language,
        )


def _sum(left: Sums, right: Sums) -> Sums:
    values: dict[str, Any] = {
        field.name: getattr(left, field.name) + getattr(right, field.name) for field in dataclasses.fields(left)
    }
    return type(left)(**values)
