"""A real engine that writes down what its stages run and take, and the work that it is given for that."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from loadtest.capacity.costs import PIECE_S
from loadtest.clients.server import MAX_TOKENS
from loadtest.live.audio import StreamAudio
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.recordings import RATE_HZ, Recording
from models.chain import Models
from models.protocols import Float32
from server.engine.engine import LocalEngine
from server.engine.runner.sequence import SequenceState
from server.engine.scheduler.scheduler import STEP_TOKENS
from server.engine.types.events import Delta, Done, Ended, Event, Failed, LiveEvent
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import Audio, EndOfAudio, InstructRequest, LiveRequest, SpeechTask
from server.settings import Settings

QUESTION = "Name the topic of the speech in one word."
QUESTION_TOKENS = 24
# Requests side by side in one round each: one alone, some, and all slots.
ROUNDS = (1, 2, 4)
# The lengths at which the encoder's cost is measured, which need not be proportional to them.
ENCODE_LENGTHS_S = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0)
ANSWER_TIMEOUT_S = 120.0


@dataclass
class Trace:
    """The stages that an engine ran: their sizes, their seconds, and the work of every request by its id.

    A prefill and a decode pass have the decoder and the positions of each of their rows. The work at a decoder is positions to
    prefill, decode passes, and the positions of these.
    """

    encodes: list[tuple[list[float], float]] = field(default_factory=list)
    prefills: list[tuple[list[tuple[int, int]], float]] = field(default_factory=list)
    decodes: list[tuple[list[tuple[int, int]], float]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    sequences: dict[str, SequenceState] = field(default_factory=dict)
    work: dict[str, dict[int, list[int]]] = field(default_factory=dict)


class TracedEngine(LocalEngine):
    """A `LocalEngine` that writes down each stage, the settling of its answers included."""

    def __init__(self, models: Models, settings: Settings) -> None:
        super().__init__(models, RATE_HZ, 30.0, settings.queue_limit, step_tokens=STEP_TOKENS)
        self.trace = Trace()
        self._staged_s = 0.0

    @property
    def answers_questions(self) -> bool:
        """Whether the model has an LLM behind its speech decoder."""
        return len(self._models.decoders) > 1

    def _step(self) -> None:
        started_s, self._staged_s = time.perf_counter(), 0.0
        super()._step()
        self.trace.steps.append(time.perf_counter() - started_s - self._staged_s)

    def _decode(self, batch: list[SequenceState]) -> None:
        rows = [(sequence.decoders[0], 1 + len(sequence.proposal)) for sequence in batch]
        for sequence, (_, positions) in zip(batch, rows, strict=True):
            work = self._work_at(sequence)
            work[1] += 1
            work[2] += positions
        took_s = self._time(lambda: LocalEngine._decode(self, batch))
        if batch:
            self.trace.decodes.append((rows, took_s))

    def _prefill(self, work: list[tuple[SequenceState, int]]) -> None:
        rows = [(sequence.decoders[0], positions) for sequence, positions in work]
        for sequence, positions in work:
            self._work_at(sequence)[0] += positions
        took_s = self._time(lambda: LocalEngine._prefill(self, work))
        if work:
            self.trace.prefills.append((rows, took_s))

    def _encode(self) -> None:
        batch = [sequence for sequence in self._encoding if not sequence.ended]
        for sequence in batch:
            self.trace.sequences[sequence.request.id] = sequence
        audio_s = [len(sequence.request.audio) / RATE_HZ for sequence in batch]
        took_s = self._time(lambda: LocalEngine._encode(self))
        # A batch that gave way is not a whole one.
        if batch and not any(sequence.error for sequence in batch):
            self.trace.encodes.append((audio_s, took_s))

    def _time(self, stage: Callable[[], None]) -> float:
        started_s = time.perf_counter()
        stage()
        took_s = time.perf_counter() - started_s
        self._staged_s += took_s
        return took_s

    def _work_at(self, sequence: SequenceState) -> list[int]:
        work = self.trace.work.setdefault(sequence.request.id, {})
        return work.setdefault(sequence.decoders[0], [0, 0, 0])


def to_float(stream: StreamAudio) -> Float32:
    """Return a session's samples as the engine takes them."""
    return np.multiply(stream.samples, 1 / 32768, dtype=np.float32)


def run_lengths(engine: TracedEngine, recordings: Sequence[Recording]) -> None:
    """Have speech of every length encoded, by itself and side by side; each is another piece, which no cache has."""
    speech = np.concatenate([each.samples for each in recordings])
    numbers = itertools.count()

    def encode(length_s: float, number: int) -> None:
        samples = np.resize(np.roll(speech, 160 * number), round(length_s * RATE_HZ))
        _ask(engine, f"length/{number}", samples, TRANSCRIBE, 1)

    for side_by_side in ROUNDS:
        for length_s in ENCODE_LENGTHS_S:
            pieces = itertools.islice(numbers, max(ROUNDS))
            _run(side_by_side, (partial(encode, length_s, number) for number in pieces))


def run_requests(engine: TracedEngine, recordings: Sequence[Recording]) -> None:
    """Transcribe every recording in rounds of so many side by side, then ask questions about some."""
    asked: list[tuple[str, Sequence[Recording], str, int]] = [("file", recordings, TRANSCRIBE, MAX_TOKENS)]
    if engine.answers_questions:
        asked.append(("question", recordings[: max(ROUNDS)], QUESTION, QUESTION_TOKENS))
    for kind, chosen, instruction, max_tokens in asked:
        for side_by_side in ROUNDS:
            ids = [f"{kind}/{side_by_side}/{each.name}" for each in chosen]
            _run(
                side_by_side,
                (partial(_ask, engine, id, each.samples, instruction, max_tokens) for id, each in zip(ids, chosen, strict=True)),
            )


def run_streams(engine: TracedEngine, streams: Sequence[StreamAudio]) -> None:
    """Play sessions side by side in real time."""
    _run(len(streams), (partial(_play, engine, f"session {number}", each) for number, each in enumerate(streams)))


def _run(side_by_side: int, works: Iterable[Callable[[], None]]) -> None:
    """Do work, so much of it at a time. Raises what the work raises."""
    with ThreadPoolExecutor(side_by_side) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()


def _ask(engine: TracedEngine, id: str, samples: Float32, instruction: str, max_tokens: int) -> None:
    """Have one request answered. Raises `RuntimeError` if it fails."""
    ended = threading.Event()
    outcome: list[Event] = []

    def deliver(event: Event) -> None:
        if not isinstance(event, Delta):
            outcome.append(event)
            ended.set()

    engine.submit(InstructRequest(id, samples, SpeechTask(instruction, SamplingOptions(max_tokens=max_tokens))), deliver)
    if not ended.wait(ANSWER_TIMEOUT_S) or not isinstance(outcome[0], Done):
        raise RuntimeError(f"the request {id} was not answered: {outcome}")


def _play(engine: TracedEngine, id: str, stream: StreamAudio) -> None:
    ended = threading.Event()

    def deliver(event: LiveEvent) -> None:
        if isinstance(event, Ended | Failed):
            ended.set()

    engine.open_live(LiveRequest(id, SpeechTask(TRANSCRIBE, word_times="required")), deliver)
    samples = to_float(stream)
    piece = round(PIECE_S * RATE_HZ)
    began_s = time.monotonic()
    for start in range(0, len(samples), piece):
        end = min(start + piece, len(samples))
        time.sleep(max(0.0, began_s + end / RATE_HZ - time.monotonic()))
        engine.push(id, Audio(samples[start:end]))
    engine.push(id, EndOfAudio())
    if not ended.wait(ANSWER_TIMEOUT_S):
        raise RuntimeError(f"the session {id} did not end")
