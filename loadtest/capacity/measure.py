"""The measurement of stage costs on this machine, by the real engine in this process."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from loadtest.capacity.costs import (
    PIECE_S,
    STAGES,
    DecoderCost,
    EncodeCost,
    Phase,
    Spread,
    StageCosts,
    StreamEvent,
    StreamProfile,
    WorkKind,
    WorkProfile,
    find_spread,
    fit_costs,
    share_lengths,
)
from loadtest.capacity.traced_engine import (
    ENCODE_LENGTHS_S,
    Trace,
    TracedEngine,
    run_lengths,
    run_requests,
    run_streams,
    to_float,
)
from loadtest.clients.server import BenchServer, make_body
from loadtest.faults import engine_pid
from loadtest.live.audio import StreamAudio
from loadtest.support.machine import describe_run
from loadtest.support.process import cpu_seconds
from loadtest.support.recordings import RATE_HZ, Recording, write_clip
from models.bundle.io import open_bundle
from models.chain import Models
from server.cli import get_bundle
from server.engine.factory import load_on_device
from server.engine.live.endpointing import Endpointer, SpeechBegan, SpeechOver, SpeechPaused, SpeechResumed
from server.engine.runner.sequence import SequenceState
from server.engine.scheduler.scheduler import STEP_TOKENS
from server.engine.types.options import Priority, VoiceOptions
from server.settings import Settings

# How often every recording is sent to a server.
DOOR_ROUNDS = 3


def measure_costs(
    root: Path, settings: Settings, recordings: Sequence[Recording], streams: Sequence[StreamAudio], options: list[str]
) -> StageCosts:
    """Measure the costs of the bundle's stages on this machine, and what a request waits at the door of a server.

    `options` go to `thinbridge serve`. Nothing else should run beside it.
    """
    conditions = describe_run(root)
    bundle = open_bundle(get_bundle(settings))
    models = load_on_device(bundle, settings)
    engine = TracedEngine(models, settings)
    engine.start()
    engine.trace = Trace()
    try:
        run_lengths(engine, recordings)
        # Only their encoding counts: no request is so short of words.
        engine.trace = Trace(encodes=engine.trace.encodes)
        run_requests(engine, recordings)
        run_streams(engine, streams)
    finally:
        engine.drain(5.0)
    costs = fit_trace(engine.trace, models, f"{bundle.manifest.name}, this machine", recordings)
    costs = dataclasses.replace(
        costs,
        voice_s=measure_voice_s(models, streams[0]),
        streams=tuple(profile_stream(models, each) for each in streams),
        conditions=conditions,
        slots=settings.slots,
        queue_limit=settings.queue_limit,
    )
    alone = sum_stages(dataclasses.asdict(engine.trace.sequences[f"file/1/{each.name}"].times) for each in recordings)
    # Two copies of the models would not fit small machines.
    del models, engine
    door = measure_door(root, options, recordings)
    slower = {stage: door.stages_s[stage] / DOOR_ROUNDS / alone[stage] for stage in STAGES}
    return dataclasses.replace(
        costs.stretched(**slower),
        door_s=door.wait_s,
        door_cpu_s=door.cpu_s,
        cores=len(os.sched_getaffinity(0)),
        conditions=conditions | {"served_over_alone": {stage: round(each, 3) for stage, each in slower.items()}},
    )


def fit_trace(trace: Trace, models: Models, name: str, recordings: Sequence[Recording]) -> StageCosts:
    """Fit the costs to what was traced."""
    encode_cost = fit_encode(trace.encodes)
    count = len(models.decoders)
    prefill_rows, decode_rows = ([_columns(rows, count) for rows, _ in each] for each in (trace.prefills, trace.decodes))
    encode_s, prefill_s, decode_s = (
        [took_s for _, took_s in stages] for stages in (trace.encodes, trace.prefills, trace.decodes)
    )
    prefill, decode = fit_costs(prefill_rows, prefill_s), fit_costs(decode_rows, decode_s)
    decoders = tuple(
        DecoderCost(*prefill[3 * number : 3 * number + 3], *decode[3 * number : 3 * number + 3]) for number in range(count)
    )
    spread = Spread(
        find_spread(encode_s, [encode_cost.predict_s(audio_s) for audio_s, _ in trace.encodes]),
        find_spread(prefill_s, [float(np.dot(prefill, row)) for row in prefill_rows]),
        find_spread(decode_s, [float(np.dot(decode, row)) for row in decode_rows]),
    )
    return StageCosts(
        name,
        measured=True,
        encode=encode_cost,
        decoders=decoders,
        heard_s=tuple(
            len(models.pad_audio(np.zeros(round(each * RATE_HZ), np.float32))) / RATE_HZ for each in encode_cost.lengths_s
        ),
        step_s=float(np.median(trace.steps)),
        words_s=measure_words_s(trace),
        encodes_beside=models.encodes_beside,
        step_tokens=STEP_TOKENS,
        spread=spread,
        profiles=tuple(list_work(trace, [recording.name for recording in recordings])),
    )


def fit_encode(encodes: Sequence[tuple[Sequence[float], float]]) -> EncodeCost:
    """Fit the cost of a call and of each length to batches, given as the lengths of their utterances and the seconds they took.

    Lengths that no utterance was near are left out.
    """
    shares = np.array([share_lengths(audio_s, ENCODE_LENGTHS_S) for audio_s, _ in encodes])
    lengths_s = [length_s for length_s, share in zip(ENCODE_LENGTHS_S, shares.T, strict=True) if share.any()]
    columns = [[1.0, *share_lengths(audio_s, lengths_s)] for audio_s, _ in encodes]
    call_s, *row_s = fit_costs(columns, [took_s for _, took_s in encodes])
    return EncodeCost(call_s, tuple(lengths_s), tuple(row_s))


def list_work(trace: Trace, names: Sequence[str]) -> list[WorkProfile]:
    """Return the work of the requests that were traced; requests about recordings have ids like `file/round/name`."""
    profiles: dict[tuple[WorkKind, str, float], WorkProfile] = {}
    for id, sequence in trace.sequences.items():
        if not sequence.finished or sequence.error:
            continue
        kind = _kind_of(sequence)
        name = next((each for each in names if id.endswith(f"/{each}")), "")
        phases = tuple(
            Phase(number, positions, passes, in_passes / passes if passes else 1.0)
            for number, (positions, passes, in_passes) in sorted(trace.work.get(id, {}).items())
        )
        audio_s = round(len(sequence.request.audio) / RATE_HZ, 3)
        # The same file is the same work each time.
        key = f"{id.partition('/')[0]}/{name}" if name else id
        profiles.setdefault((kind, key, audio_s), WorkProfile(kind, key if name else "", audio_s, phases))
    return list(profiles.values())


def measure_words_s(trace: Trace) -> float:
    """Return what it takes to time the words in one second of audio, with detokenisation, which takes next to nothing."""
    timed = [sequence for sequence in trace.sequences.values() if sequence.words is not None]
    audio_s = sum(len(sequence.request.audio) / RATE_HZ for sequence in timed)
    return sum(sequence.times.detokenise_s for sequence in timed) / audio_s if timed else 0.0


def measure_voice_s(models: Models, stream: StreamAudio) -> float:
    """Return the processor seconds that voice detection takes for one second of audio that comes window by window."""
    started_s = time.process_time()
    state = None
    window = models.voice.window_samples
    samples = to_float(stream)[: 10 * RATE_HZ]
    samples = samples[: len(samples) - len(samples) % window]
    for start in range(0, len(samples), window):
        _, state = models.voice.detect(samples[start : start + window], state)
    return (time.process_time() - started_s) * RATE_HZ / len(samples)


def profile_stream(models: Models, stream: StreamAudio) -> StreamProfile:
    """Return the endpointer's events in a session's audio, each at the end of the piece that brings it."""
    window = models.voice.window_samples
    samples = to_float(stream)
    probabilities, _ = models.voice.detect(np.pad(samples, (0, -len(samples) % window)), None)
    endpointer = Endpointer(VoiceOptions(), window, RATE_HZ)
    events: list[StreamEvent] = []
    for number, probability in enumerate(probabilities):
        at_s = float(np.ceil((number + 1) * window / RATE_HZ / PIECE_S) * PIECE_S)
        was_silent = endpointer.is_silent
        told = endpointer.push([probability])
        if endpointer.is_silent != was_silent and not any(isinstance(event, SpeechOver) for event in told):
            events.append(StreamEvent("speaks" if was_silent else "silent", at_s))
        for event in told:
            match event:
                case SpeechBegan(start):
                    events.append(StreamEvent("began", at_s, start / RATE_HZ))
                case SpeechPaused(start, end):
                    events.append(StreamEvent("paused", at_s, start / RATE_HZ, end / RATE_HZ))
                case SpeechResumed():
                    events.append(StreamEvent("resumed", at_s))
                case SpeechOver(start, end):
                    events.append(StreamEvent("over", at_s, start / RATE_HZ, end / RATE_HZ))
    audio_s = len(samples) / RATE_HZ
    for event in endpointer.flush():
        if isinstance(event, SpeechOver):
            events.append(StreamEvent("over", audio_s, event.start / RATE_HZ, event.end / RATE_HZ))
    return StreamProfile(audio_s, tuple(events), tuple((each.start_s, each.end_s) for each in stream.spoken))


@dataclass(frozen=True)
class Door:
    """The figures of requests to a server, one after the other.

    These are the median wait beyond queue and models, the processor seconds of a request outside of the engine's process, the
    client's own included, and the seconds of the stages of all.
    """

    wait_s: float
    cpu_s: float
    stages_s: dict[str, float]


def measure_door(root: Path, options: list[str], recordings: Sequence[Recording]) -> Door:
    """Send every recording to a server so many times."""
    with BenchServer(root, options) as server, tempfile.TemporaryDirectory() as folder:
        engine = engine_pid(server.pid)

        def outside_s() -> float:
            return cpu_seconds(server.pid) - cpu_seconds(engine) + time.process_time()

        bodies = [make_body(write_clip(Path(folder), each.name, each.samples).audio) for each in recordings]
        server.answer(bodies[0])
        begun_s, waits, told = outside_s(), [], []
        for body in DOOR_ROUNDS * bodies:
            started_s = time.perf_counter()
            times = server.answer(body)["times_ms"]
            took_s = time.perf_counter() - started_s
            told.append({name: times.get(f"{name}_ms", 0.0) / 1000 for name in ("queue", "detokenise", *chain(*STAGES.values()))})
            waits.append(took_s - sum(told[-1].values()))
        cpu_s = (outside_s() - begun_s) / len(waits)
    stages_s = sum_stages({f"{name}_s": each for name, each in times.items()} for times in told)
    return Door(float(np.median(waits)), cpu_s, stages_s)


def sum_stages(times: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the seconds of each stage over requests, given the times of each."""
    given = list(times)
    return {stage: sum(each[f"{name}_s"] for each in given for name in names) for stage, names in STAGES.items()}


def _kind_of(sequence: SequenceState) -> WorkKind:
    if not sequence.of_session:
        return "file"
    if sequence.request.priority != Priority.PARTIAL:
        return "answer"
    return "draft" if sequence.request.task.sampling.max_tokens == 0 else "partial"


def _columns(rows: Sequence[tuple[int, int]], decoders: int) -> list[float]:
    """Return calls, rows and positions of each decoder."""
    columns: list[float] = []
    for number in range(decoders):
        positions = [each for decoder, each in rows if decoder == number]
        columns += [float(bool(positions)), len(positions), sum(positions)]
    return columns
