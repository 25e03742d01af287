"""One audio file through an engine of this process: in one piece, or cut at its pauses, as the server does it."""

import queue
import time
import uuid
from collections.abc import Iterator
from itertools import chain

import numpy as np

from server.api.native.schema import InstructReply, instruct_reply
from server.audio.decode import AudioLimits, Samples, decode_blocks
from server.engine.types.events import Delta, Done, Event, Failed, LiveEvent, Word
from server.engine.types.options import SamplingOptions
from server.engine.types.protocol import Engine
from server.engine.types.requests import Audio, EndOfAudio, InstructRequest, LiveRequest
from server.jobs.gathering import LongAudioAggregator, live_request_from
from server.jobs.long_audio import AHEAD_S


def instruct_file(
    engine: Engine,
    data: bytes,
    limits: AudioLimits,
    instruction: str,
    sampling: SamplingOptions,
    *,
    word_times: bool = False,
) -> tuple[InstructReply, tuple[Word, ...]]:
    """The reply to a file, which is decoded here, and the words where they are asked for. Raises `ServeError`."""
    started_s = time.perf_counter()
    blocks = _Stopwatch(decode_blocks(data, limits))
    whole_samples = engine.max_audio_s * engine.sample_rate_hz
    head = _beginning(blocks, whole_samples)
    request = InstructRequest(uuid.uuid4().hex, np.concatenate(head), instruction, sampling, word_times=word_times)
    if len(request.audio) <= whole_samples:
        done = _answer_clip(engine, request)
        audio_s, basis, sections = len(request.audio) / engine.sample_rate_hz, None, None
    else:
        session = live_request_from(request, engine.transcribes(instruction))
        gathering = LongAudioAggregator(session)
        done = _answer_recording(engine, session, chain(head, blocks), gathering)
        audio_s, basis, sections = gathering.audio_s, gathering.basis, gathering.sections
    done.times.audio_decode_s = blocks.passed_s
    done.times.total_s = time.perf_counter() - started_s
    return instruct_reply(done.request_id, done, audio_s, basis=basis, sections=sections), done.words or ()


class _Stopwatch:
    """Hands on blocks, and measures how long they take to come."""

    def __init__(self, blocks: Iterator[Samples]) -> None:
        self.passed_s = 0.0
        self._blocks = blocks

    def __iter__(self) -> Iterator[Samples]:
        return self

    def __next__(self) -> Samples:
        started_s = time.perf_counter()
        try:
            return next(self._blocks)
        finally:
            self.passed_s += time.perf_counter() - started_s


def _beginning(blocks: Iterator[Samples], samples: float) -> list[Samples]:
    """The first blocks, until they are more than so many samples."""
    head: list[Samples] = []
    while sum(map(len, head)) <= samples and (block := next(blocks, None)) is not None:
        head.append(block)
    return head


def _answer_clip(engine: Engine, request: InstructRequest) -> Done:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit(request, events.put)
    while isinstance(event := events.get(), Delta):
        pass
    if not isinstance(event, Done):
        raise event.error
    return event


def _answer_recording(engine: Engine, request: LiveRequest, blocks: Iterator[Samples], gathering: LongAudioAggregator) -> Done:
    events: queue.SimpleQueue[LiveEvent] = queue.SimpleQueue()
    engine.open_live(request, events.put)
    try:
        pushed_s = 0.0
        for block in blocks:
            engine.push(request.id, Audio(block))
            pushed_s += len(block) / engine.sample_rate_hz
            while pushed_s - gathering.listened_s > AHEAD_S:
                _hear(gathering, events)
        engine.push(request.id, EndOfAudio())
        while (done := _hear(gathering, events)) is None:
            pass
    except BaseException:
        engine.abort(request.id)
        raise
    return done


def _hear(gathering: LongAudioAggregator, events: queue.SimpleQueue[LiveEvent]) -> Done | None:
    """Wait for the next event; the answer, if that was it. Raises the error of a failure."""
    match gathering.take(events.get()):
        case Failed() as failed:
            raise failed.error
        case Done() as done:
            return done
    return None
