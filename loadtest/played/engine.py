"""The engine in virtual time: real models and texts, while every stage takes what it costs on a quiet machine.

Everything runs on one thread, so a session is played in the same way each time, however busy the machine is.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from models.chain import Models
from models.protocols import (
    DecodeRow,
    Encoder,
    EncoderStates,
    EncodingInterrupted,
    Float32,
    KVCache,
    PrefillRow,
    Projector,
    ProjectorOutput,
    SpeechDecoder,
)
from server.engine.engine import LocalEngine
from server.engine.runner.encode_stage import WorkerThread
from server.engine.runner.sequence import SequenceState


@dataclass(frozen=True)
class Costs:
    """The seconds that stages of the default bundle take on 2 quiet cores.

    These are the least of 9 runs at each size on a busy machine, and a fifth more: with that, waits are about those that were
    measured over HTTP on the quiet one.
    """

    features_s: float = 0.0012
    features_per_s: float = 0.0006
    encode_s: float = 0.086
    encode_per_s: float = 0.0144
    project_s: float = 0.006
    project_per_state: float = 0.000042
    memory_s: float = 0.005
    memory_per_state: float = 0.000048
    pass_s: float = 0.006
    pass_per_row: float = 0.0042
    pass_per_position: float = 0.001
    step_s: float = 0.0005

    def run_decoder(self, positions: Sequence[int]) -> float:
        """Return what a pass of the speech decoder takes over rows of so many positions."""
        return self.pass_s + sum(self.pass_per_row + self.pass_per_position * each for each in positions)


class VirtualClock:
    """The time that `time.perf_counter` and `time.monotonic` show while it is `shown`.

    `add_event` has something happen at a moment; `spend` lets time pass, and `wait` lets it pass up to the next event.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, Callable[[], None]]] = []

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Have everything in this process read the virtual time within the block."""
        with patch("time.perf_counter", lambda: self.now_s), patch("time.monotonic", lambda: self.now_s):
            yield

    @property
    def has_events(self) -> bool:
        """Whether anything is still to happen."""
        return len(self._events) > 0

    def add_event(self, at_s: float, happen: Callable[[], None]) -> None:
        """Have something happen at a moment, after what was added for the same moment."""
        self._events.append((at_s, happen))
        self._events.sort(key=lambda event: event[0])

    def wait(self) -> None:
        """Go on to the next event."""
        self.spend(max(0.0, self._events[0][0] - self.now_s))

    def spend(self, seconds: float, watch: Callable[[], None] = lambda: None) -> None:
        """Let time pass; `watch` is called after each event on the way, and what that raises ends the time there."""
        end_s = self.now_s + seconds
        while self._events and self._events[0][0] <= end_s:
            at_s, happen = self._events.pop(0)
            self.now_s = max(self.now_s, at_s)
            happen()
            watch()
        self.now_s = end_s


class PlayedEngine(LocalEngine):
    """The engine with stages that take virtual time. `interrupted` counts the batches that gave way while they were encoded."""

    def __init__(self, models: Models, clock: VirtualClock, costs: Costs) -> None:
        self.clock, self.costs = clock, costs
        self.interrupted = 0
        self._batch: list[SequenceState] = []
        super().__init__(price_models(models, clock, costs, self.follow_sessions), models.sample_rate_hz, 30.0, queue_limit=64)
        self._encode_worker = self._word_worker = SameThreadWorker()
        self._live._listener = SameThreadExecutor()
        self._ready = True

    def run_until_idle(self) -> None:
        """Play until nothing is left to happen, and nothing to do."""
        while True:
            with self._changed:
                is_busy = self._requests.have_work or self._live.have_detected
            if is_busy:
                self._step()
                self.clock.spend(self.costs.step_s)
            elif self.clock.has_events:
                self.clock.wait()
            else:
                return

    def follow_sessions(self) -> None:
        """Take up what sessions hear while a batch is encoded. Raises `EncodingInterrupted` where that has to give way."""
        self._live.take_detected()
        with self._changed:
            gives_way = self._requests.should_interrupt(self._batch)
        if gives_way:
            self.interrupted += 1
            raise EncodingInterrupted("An answer goes before.")

    def _start_encoding(self, batch: list[SequenceState]) -> None:
        self._batch = batch
        super()._start_encoding(batch)


class SameThreadWorker(WorkerThread):
    """Does each piece of work as soon as it is submitted."""

    def __init__(self) -> None:
        super().__init__("none")

    def submit_work(self, work: Callable[[], None]) -> Future[None]:
        """Do a piece of work."""
        future = super().submit_work(work)
        self._do_next()
        return future


class SameThreadExecutor(ThreadPoolExecutor):
    """Calls each function as soon as it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def price_models(models: Models, clock: VirtualClock, costs: Costs, watch: Callable[[], None]) -> Models:
    """Return models whose stages let time pass; `watch` is called on the way while the encoder does."""
    speech = models.require_speech()

    def features(audio: Float32) -> Float32:
        clock.spend(costs.features_s + costs.features_per_s * len(audio) / models.sample_rate_hz)
        return models.features(audio)

    return replace(
        models,
        features=features,
        encoder=PricedEncoder(models.encoder, clock, costs, watch),
        projector=PricedProjector(models.projector, clock, costs),
        speech=replace(speech, decoder=PricedDecoder(speech.decoder, clock, costs)),
        interrupt_encoder=lambda: None,
    )


class PricedEncoder:
    """An encoder whose states come when the time for them has passed."""

    def __init__(self, encoder: Encoder, clock: VirtualClock, costs: Costs, watch: Callable[[], None]) -> None:
        self._encoder, self._clock, self._costs, self._watch = encoder, clock, costs, watch

    def encode(self, features: Sequence[Float32]) -> list[EncoderStates]:
        """Encode, unless `watch` raises on the way."""
        seconds = sum(each.shape[1] for each in features) / 100
        self._clock.spend(self._costs.encode_s * len(features) + self._costs.encode_per_s * seconds, self._watch)
        return self._encoder.encode(features)


class PricedProjector:
    """A projector that takes time."""

    def __init__(self, projector: Projector, clock: VirtualClock, costs: Costs) -> None:
        self._projector, self._clock, self._costs = projector, clock, costs
        self.boundary_before, self.boundary_after = projector.boundary_before, projector.boundary_after

    def project(self, states: Sequence[EncoderStates]) -> list[ProjectorOutput]:
        """Project, and let time pass."""
        self._clock.spend(sum(self._costs.project_s + self._costs.project_per_state * len(each) for each in states))
        return self._projector.project(states)


class PricedDecoder:
    """A speech decoder whose passes take time."""

    def __init__(self, decoder: SpeechDecoder, clock: VirtualClock, costs: Costs) -> None:
        self._decoder, self._clock, self._costs = decoder, clock, costs
        self.slots, self.max_positions = decoder.slots, decoder.max_positions
        self.embedding_size, self.vocabulary_size = decoder.embedding_size, decoder.vocabulary_size

    @property
    def cache(self) -> KVCache:
        """The slots."""
        return self._decoder.cache

    def embed(self, tokens: Sequence[int]) -> Float32:
        """Embed at no cost."""
        return self._decoder.embed(tokens)

    def prefill(self, rows: Sequence[PrefillRow]) -> list[Float32]:
        """Run a pass over new positions."""
        self._clock.spend(self._costs.run_decoder([len(row.embeddings) for row in rows]))
        return self._decoder.prefill(rows)

    def decode(self, rows: Sequence[DecodeRow]) -> list[Float32]:
        """Run a pass over the newest tokens."""
        self._clock.spend(self._costs.run_decoder([len(row.tokens) for row in rows]))
        return self._decoder.decode(rows)

    def write_memory(self, slot: int, states: EncoderStates) -> None:
        """Write a memory."""
        self._clock.spend(self._costs.memory_s + self._costs.memory_per_state * len(states))
        self._decoder.write_memory(slot, states)
