"""A recording, cut at its pauses by a live session of the engine and answered as one request."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

from server.audio.decode import Samples
from server.audio.stream import AudioStream
from server.engine.types.events import Basis, Delta, Done, Ended, Event, Failed, Listened, LiveEvent, Problem
from server.engine.types.protocol import Engine
from server.engine.types.requests import Audio, EndOfAudio, LiveRequest
from server.errors import NotReady, ServeError
from server.jobs.gathering import LongAudioAggregator

logger = logging.getLogger(__name__)

BLOCK_S = 1.0
# How much audio may wait in the engine to be listened to.
AHEAD_S = 10.0


class LongAudioJob:
    """`Job` on a file of which `head` is decoded already: the rest is decoded no faster than the engine listens.

    Its first event comes, perhaps without text, as soon as the engine has begun. `on_progress` is called whenever it gets on.
    Belongs to the event loop that it was made on.
    """

    # From `start` on.
    _deliver: Callable[[Event], None]
    _feeding: asyncio.Task[None]

    def __init__(
        self,
        engine: Engine,
        request: LiveRequest,
        head: Samples,
        rest: AudioStream,
        audio_decode_s: float,
        on_progress: Callable[[], None],
    ) -> None:
        self.audio_decode_s = audio_decode_s
        self._engine = engine
        self._request = request
        self._head = head
        self._rest = rest
        self._on_progress = on_progress
        self._gathering = LongAudioAggregator(request)
        self._pushed_s = 0.0
        self._listened = asyncio.Event()
        self._begun = self._all_pushed = self._over = False
        self._loop = asyncio.get_running_loop()

    @property
    def id(self) -> str:
        return self._request.id

    @property
    def audio_s(self) -> float:
        return self._gathering.audio_s

    @property
    def basis(self) -> Basis:
        return self._gathering.basis

    @property
    def sections(self) -> int:
        return self._gathering.sections

    def start(self, deliver: Callable[[Event], None]) -> None:
        self._deliver = deliver
        self._engine.open_live(self._request, self._hear)
        self._feeding = asyncio.create_task(self._feed())

    def abort(self) -> None:
        self._over = True
        self._feeding.cancel()
        self._engine.abort(self.id)

    def _hear(self, event: LiveEvent) -> None:
        """For the engine's thread."""
        self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: LiveEvent) -> None:
        if self._over:
            return
        self._on_progress()
        heard = self._gathering.take(event)
        match event, heard:
            case Problem(), Failed():
                self._fail(heard.error)
            case Ended(), Done() if not self._all_pushed:
                # A server that stops ends its sessions, but half a recording is no answer.
                self._fail(NotReady("The server is stopping.", retry_after_s=1))
            case _, Done() | Failed():
                self._over = True
                self._feeding.cancel()
                self._deliver(heard)
            case _, Delta():
                self._begun = True
                self._deliver(heard)
            case Listened(), None:
                self._listened.set()
                if not self._begun:
                    self._begun = True
                    self._deliver(Delta(self.id, ""))

    def _fail(self, error: ServeError) -> None:
        """End it for a reason that the engine does not know."""
        self.abort()
        self._deliver(Failed(self.id, error))

    async def _feed(self) -> None:
        try:
            async for block in self._blocks():
                # It may wait there, and then decoding waits too.
                while self._pushed_s + BLOCK_S - self._gathering.listened_s > AHEAD_S:
                    self._listened.clear()
                    await self._listened.wait()
                self._pushed_s += len(block) / self._engine.sample_rate_hz
                self._engine.push(self.id, Audio(block))
            self._all_pushed = True
            self._engine.push(self.id, EndOfAudio())
        except ServeError as error:
            self._fail(error)
        except Exception:
            logger.exception("recording %s met a bug", self.id)
            self._fail(ServeError("The server met an unexpected error."))

    async def _blocks(self) -> AsyncIterator[Samples]:
        block_samples = int(BLOCK_S * self._engine.sample_rate_hz)
        for start in range(0, len(self._head), block_samples):
            yield self._head[start : start + block_samples]
        while not self._rest.ended:
            started_s = time.perf_counter()
            block = await self._rest.read(block_samples)
            self.audio_decode_s += time.perf_counter() - started_s
            if len(block):
                yield block
