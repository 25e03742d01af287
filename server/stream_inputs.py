"""What one live session pushes into the engine, gathered so that no client can make very many things of little audio."""

import time

import numpy as np

from server.engine_protocol import Engine
from server.live import Audio, ChangeInstruction, EndOfAudio, Flush
from server.live_metrics import SessionTimer
from server.pcm import Samples

# Less audio than this waits for more.
LEAST_AUDIO_S = 0.01


class SessionInputs:
    """Pushes audio in pieces of at least `LEAST_AUDIO_S`, but before a flush and at the end.

    A new instruction goes with the audio or the flush that comes next, so that of several in a row only the last is ever
    looked at.
    """

    def __init__(self, engine: Engine, session_id: str, timer: SessionTimer) -> None:
        self.pushed_s = 0.0
        self._engine = engine
        self._id = session_id
        self._timer = timer
        self._waiting: list[Samples] = []
        self._waiting_s = 0.0
        self._change: ChangeInstruction | None = None

    def hear(self, samples: Samples) -> None:
        self._waiting.append(samples)
        self._waiting_s += len(samples) / self._engine.sample_rate_hz
        if self._waiting_s >= LEAST_AUDIO_S:
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
        self._waiting_s = 0.0
        if len(samples):
            duration_s = len(samples) / self._engine.sample_rate_hz
            self.pushed_s += duration_s
            self._timer.audio_came(duration_s, self.pushed_s, time.perf_counter())
            self._engine.push(self._id, Audio(samples))
