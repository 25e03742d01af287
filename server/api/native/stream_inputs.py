"""What one live session pushes into the engine, gathered so that no client can make very many things of little audio."""

import time

import numpy as np

from server.api.native.stream_requests import Start
from server.audio.pcm import PcmStream, Samples, SampleStream
from server.audio.sandbox import DecodePool
from server.audio.stream import OpusStream
from server.engine.types.protocol import Engine
from server.engine.types.requests import Audio, ChangeInstruction, EndOfAudio, Flush
from server.observability.live import SessionTimer

# Less audio than this waits for more.
LEAST_AUDIO_S = 0.01


async def sample_stream(start: Start, pool: DecodePool, client: str) -> SampleStream:
    """What decodes the audio of a session that starts so. Raises `Overloaded` or `NotReady`."""
    if start.encoding == "ogg_opus":
        return await OpusStream.open(pool, client)
    return PcmStream(start.sample_rate_hz, pool.limits.sample_rate_hz)


class SessionInputs:
    """Pushes audio in pieces of at least `LEAST_AUDIO_S`, but before a flush and at the end.

    A new instruction goes with the audio or the flush that comes next, so that of several in a row only the last is ever
    looked at.
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

    def hear(self, samples: Samples) -> None:
        if len(samples):
            self._waiting.append(samples)
        if sum(map(len, self._waiting)) >= LEAST_AUDIO_S * self._rate_hz:
            self._push_waiting()

    def change(self, change: ChangeInstruction) -> None:
        self._change = change

    def flush(self, flush: Flush) -> None:
        self._push_waiting()
        self._engine.push(self._id, flush)

    def end(self) -> None:
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
