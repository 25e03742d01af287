"""The costs of a model's stages on one machine, and the work that its requests need: all that the simulator knows of both."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

Float64 = npt.NDArray[np.float64]
WorkKind = Literal["file", "answer", "partial", "draft"]
StreamEventKind = Literal["began", "silent", "paused", "speaks", "resumed", "over"]

# A live session sends its audio in pieces of so many seconds.
PIECE_S = 0.04
SPREAD_POINTS = 21
# Profiles next in length among which a request's work is drawn.
NEIGHBOURS = 3


STAGES = {
    "encode": ("features", "encode", "adapter"),
    "prefill": ("prefill",),
    "decode": ("decode",),
}
"""The stages that have costs, and the times of a request that are theirs."""


def share_lengths(audio_s: Sequence[float], lengths_s: Sequence[float]) -> Float64:
    """Return how much of a batch of utterances counts as each of some rising lengths, by linear interpolation."""
    return np.array([np.interp(audio_s, lengths_s, each).sum() for each in np.eye(len(lengths_s))])


@dataclass(frozen=True)
class EncodeCost:
    """Seconds of one batch: for the call, and for each utterance what one of its length was measured to take.

    `row_s` are the costs of utterances of `lengths_s` seconds, before any padding. Between two lengths they are interpolated; an
    utterance that is shorter or longer than all of them costs as much as the nearest.
    """

    call_s: float
    lengths_s: tuple[float, ...]
    row_s: tuple[float, ...]

    def predict_s(self, audio_s: Sequence[float]) -> float:
        """Return the seconds that a batch of utterances takes."""
        return self.call_s + float(np.interp(audio_s, self.lengths_s, self.row_s).sum())


@dataclass(frozen=True)
class DecoderCost:
    """Seconds of one decoder's passes: for the call, each row, and each position, of which drafts bring several to a row."""

    prefill_call_s: float
    prefill_row_s: float
    prefill_position_s: float
    decode_call_s: float
    decode_row_s: float
    decode_position_s: float

    def predict_prefill_s(self, positions: Sequence[int]) -> float:
        """Return the seconds that a prefill of so many positions per row takes."""
        if not positions:
            return 0.0
        return self.prefill_call_s + self.prefill_row_s * len(positions) + self.prefill_position_s * sum(positions)

    def predict_decode_s(self, positions: Sequence[float]) -> float:
        """Return the seconds that a decode pass of so many positions per row takes."""
        if not positions:
            return 0.0
        return self.decode_call_s + self.decode_row_s * len(positions) + self.decode_position_s * sum(positions)


@dataclass(frozen=True)
class Phase:
    """The work of a request at one decoder: positions to prefill, then decode passes of `pass_positions` each, on average."""

    decoder: int
    positions: int
    passes: int
    pass_positions: float = 1.0


@dataclass(frozen=True)
class WorkProfile:
    """The work of one request: its recording (empty in live sessions), its audio, and its phases, of which a draft has none."""

    kind: WorkKind
    name: str
    audio_s: float
    phases: tuple[Phase, ...]


@dataclass(frozen=True)
class StreamEvent:
    """An event of the endpointer, `at_s` after the session's first sample; `end_s` is where the utterance would end.

    An utterance is `silent` before its silence has lasted long enough to be `paused`; then it `speaks` again, and, if it was
    paused, is `resumed`.
    """

    kind: StreamEventKind
    at_s: float
    start_s: float = 0.0
    end_s: float = 0.0


@dataclass(frozen=True)
class StreamProfile:
    """One live session: its length, the endpointer's events in it, and when each recording in it is really spoken."""

    audio_s: float
    events: tuple[StreamEvent, ...]
    spoken: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Spread:
    """Quantiles of measured over fitted seconds, by stage: repeated runs of the same work differ so much."""

    encode: tuple[float, ...] = (1.0,)
    prefill: tuple[float, ...] = (1.0,)
    decode: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class StageCosts:
    """The stages of one model on one machine. `measured` is False for predictions that nothing has confirmed.

    `heard_s` are the seconds that the encoder hears of utterances of `encode.lengths_s`, padding included. `step_s` is what
    a step costs beside its stages, `door_s` what a request waits outside the engine, `door_cpu_s` the processor seconds that it
    takes there (server, decoder, client) on `cores` cores, `voice_s` the detection of voice in one
    second of live audio, on a thread beside the engine's, and `words_s` the timing of the words in one second of live audio, on
    another one, before an answer or a written partial is told. With `encodes_beside`, the encoder runs beside the decoders (on a
    GPU).
    """

    name: str
    measured: bool
    encode: EncodeCost
    decoders: tuple[DecoderCost, ...]
    heard_s: tuple[float, ...]
    step_s: float = 0.0
    door_s: float = 0.0
    door_cpu_s: float = 0.0
    cores: int = 1
    voice_s: float = 0.0
    words_s: float = 0.0
    encodes_beside: bool = False
    slots: int = 4
    queue_limit: int = 16
    step_tokens: int = 128
    spread: Spread = field(default_factory=Spread)
    profiles: tuple[WorkProfile, ...] = ()
    streams: tuple[StreamProfile, ...] = ()
    conditions: dict[str, Any] = field(default_factory=dict)

    def stretched(self, encode: float, prefill: float, decode: float) -> "StageCosts":
        """Return these costs with every stage longer by its factor."""
        row_s = tuple(encode * each for each in self.encode.row_s)
        decoders = tuple(
            DecoderCost(
                prefill * each.prefill_call_s,
                prefill * each.prefill_row_s,
                prefill * each.prefill_position_s,
                decode * each.decode_call_s,
                decode * each.decode_row_s,
                decode * each.decode_position_s,
            )
            for each in self.decoders
        )
        encode_cost = EncodeCost(encode * self.encode.call_s, self.encode.lengths_s, row_s)
        return dataclasses.replace(self, encode=encode_cost, decoders=decoders)

    def draw_work(self, kind: WorkKind, audio_s: float, random: np.random.Generator) -> WorkProfile:
        """Return the measured work of an utterance about as long.

        A machine that is slow during the measurement writes no partials; an answer's work stands for theirs then. Raises
        `ValueError` if there is no work of this kind.
        """
        same = [each for each in self.profiles if each.kind == kind]
        if not same and kind == "partial":
            same = [each for each in self.profiles if each.kind == "answer"]
        if not same:
            raise ValueError(f"no work of the kind {kind} was measured")
        near = sorted(same, key=lambda profile: abs(profile.audio_s - audio_s))[:NEIGHBOURS]
        return dataclasses.replace(near[int(random.integers(len(near)))], audio_s=audio_s)


def fit_costs(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Fit non-negative costs per column, by least squares of relative errors. Columns that would be negative are 0.

    Raises `ValueError` if nothing was measured.
    """
    if not seconds:
        raise ValueError("nothing was measured")
    taken = np.asarray(seconds, np.float64)
    matrix = np.asarray(features, np.float64) / taken[:, None]
    kept = [column for column in range(matrix.shape[1]) if matrix[:, column].any()]
    costs = np.zeros(matrix.shape[1])
    while kept:
        solution = np.linalg.lstsq(matrix[:, kept], np.ones(len(taken)), rcond=None)[0]
        if solution.min() >= 0:
            costs[kept] = solution
            break
        kept.pop(int(solution.argmin()))
    return [float(cost) for cost in costs]


def find_spread(measured: Sequence[float], fitted: Sequence[float]) -> tuple[float, ...]:
    """Return quantiles of measured over fitted seconds, scaled so that their mean is that of the measurement."""
    ratios = np.asarray(measured, np.float64) / np.maximum(np.asarray(fitted, np.float64), 1e-9)
    points = np.quantile(ratios, np.linspace(0.0, 1.0, SPREAD_POINTS))
    mean = float(np.sum(measured)) / max(1e-9, float(np.sum(fitted)))
    return tuple(round(float(point), 4) for point in points * mean / points.mean())


def write_costs(costs: StageCosts, path: Path) -> None:
    """Write costs as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(costs), indent=1) + "\n", encoding="utf-8")


def read_costs(path: Path) -> StageCosts:
    """Read what `write_costs` wrote. Raises `OSError`, and `ValueError` if it is something else."""
    try:
        return TypeAdapter(StageCosts).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} does not hold stage costs: {error}") from None
