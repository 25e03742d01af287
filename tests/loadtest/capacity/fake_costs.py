"""Stage costs that tests can compute with."""

from dataclasses import replace
from typing import Any

from loadtest.capacity.costs import (
    DecoderCost,
    EncodeCost,
    Phase,
    StageCosts,
    StreamEvent,
    StreamProfile,
    WorkKind,
    WorkProfile,
)

ENCODE_S, PREFILL_S, PASS_S, PASSES = 0.2, 0.05, 0.02, 5
ANSWER_S = ENCODE_S + PREFILL_S + PASSES * PASS_S
AUDIO_S = 4.0


def work(kind: WorkKind, name: str = "") -> WorkProfile:
    """Return one utterance's work; drafts are only encoded."""
    phases = () if kind == "draft" else (Phase(0, 10, PASSES),)
    return WorkProfile(kind, name, AUDIO_S, phases)


# Speech from 1.3 to 3 s with a pause at 2 s that turns out to be none.
STREAM = StreamProfile(
    5.0,
    (
        StreamEvent("began", 1.4, 1.0),
        StreamEvent("paused", 2.08, 1.0, 2.06),
        StreamEvent("resumed", 2.2),
        StreamEvent("paused", 3.08, 1.0, 3.06),
        StreamEvent("over", 3.52, 1.0, 3.06),
    ),
    ((1.3, 3.0),),
)


def make_costs(**changes: Any) -> StageCosts:
    """Return costs of an engine with one decoder, which add up to `ANSWER_S` for one request alone."""
    costs = StageCosts(
        "test",
        measured=True,
        encode=EncodeCost(0.0, (7.0, 27.0), (ENCODE_S, 3 * ENCODE_S)),
        decoders=(DecoderCost(PREFILL_S, 0.0, 0.0, PASS_S, 0.0, 0.0),),
        heard_s=(10.0, 30.0),
        profiles=(work("file", "file/a"), work("answer"), work("partial"), work("draft")),
        streams=(STREAM,),
    )
    return replace(costs, **changes)
