"""Engines that a child process can make by name, and the gate that holds them from outside."""

import math
import os
import signal
import threading
import time
from pathlib import Path

from models.protocols import BackendError
from server.engine.types.protocol import Engine
from tests.support.fakes.fake_engine import FakeEngine

SLOTS, QUEUE_LIMIT = 3, 61
LONGEST_INSTRUCTION = 200
# The rate of `fake_models`.
SAMPLE_RATE_HZ = 800
# Answers end by their limit.
NEVER = 2**40


class FileGate(threading.Event):
    """An event for several processes, which is set unless a file exists."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)

    def is_set(self) -> bool:
        return not self.path.exists()

    def set(self) -> None:
        self.path.unlink(missing_ok=True)

    def clear(self) -> None:
        self.path.touch()

    def wait(self, timeout: float | None = None) -> bool:
        deadline_s = math.inf if timeout is None else time.monotonic() + timeout
        while not self.is_set() and time.monotonic() < deadline_s:
            time.sleep(0.002)
        return self.is_set()


def local(gate: str) -> Engine:
    """Return a `LocalEngine` on fake models whose encoder waits at the gate."""
    # A child without models starts sooner without these imports.
    from server.engine.engine import LocalEngine
    from tests.support.fakes.fake_models import FakeEncoder, FakeLLM, fake_models

    encoder = FakeEncoder()
    encoder.gate = FileGate(gate)
    llm = FakeLLM(slots=SLOTS, max_positions=LONGEST_INSTRUCTION + 200, mean_tokens=NEVER)
    models = fake_models(llm, encoder)
    return LocalEngine(models, SAMPLE_RATE_HZ, 30.0, QUEUE_LIMIT)


def scripted(gate: str) -> Engine:
    """Return a `FakeEngine` whose thread waits at the gate."""
    engine = FakeEngine(sample_rate_hz=SAMPLE_RATE_HZ)
    engine.gate = FileGate(gate)
    engine.slots, engine.queue_limit, engine.longest_instruction = SLOTS, QUEUE_LIMIT, LONGEST_INSTRUCTION
    return engine


def troubled(gate: str, trouble: str) -> Engine:
    """Return a scripted engine; the file `trouble`, if it exists, says how its start goes wrong."""
    match Path(trouble).read_text() if Path(trouble).exists() else "none":
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)
        case "raise":
            raise ValueError("the models are broken")
        case "refuse":
            raise BackendError("There is no such GPU.")
    return scripted(gate)


def slow(gate: str) -> Engine:
    """Return a `LocalEngine` on fake models whose encoder takes a fifth of the audio's time and waits at the gate."""
    from collections.abc import Sequence

    from models.protocols import Float32
    from server.engine.engine import LocalEngine
    from tests.support.fakes.fake_models import FakeEncoder, FakeLLM, fake_models

    class SlowEncoder(FakeEncoder):
        def encode(self, features: Sequence[Float32]) -> list[Float32]:
            time.sleep(sum(each.size for each in features) / SAMPLE_RATE_HZ / 5)
            return super().encode(features)

    encoder = SlowEncoder()
    encoder.gate = FileGate(gate)
    models = fake_models(FakeLLM(slots=SLOTS), encoder)
    return LocalEngine(models, SAMPLE_RATE_HZ, 12.0, QUEUE_LIMIT, encode_budget_audio_s=12.0)


def losing() -> Engine:
    """Return a `LocalEngine` on fake models that ends at its first failure."""
    from dataclasses import replace

    from models.protocols import BackendLostError
    from server.engine.engine import LocalEngine
    from tests.support.fakes.fake_models import FakeLLM, fake_models

    def check() -> None:
        raise BackendLostError("an illegal memory access was encountered")

    return LocalEngine(replace(fake_models(FakeLLM()), check=check), SAMPLE_RATE_HZ, 30.0, QUEUE_LIMIT)
