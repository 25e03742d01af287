"""Captured steps over slots that are updated in place do what the same steps do without a graph, bit for bit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np

from export.gpu_bench.steps import StepRig, random_inputs
from export.gpu_bench.timing import load_plan
from models.runtimes.cuda.device import Result, Stream
from models.runtimes.cuda.llm_tensorrt import buckets
from models.runtimes.cuda.steps import StepInputs, StepShape
from tests.support.gpu.rig import Rig, simulated_rig
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.simulated_gpu.stream import SimulatedGraph

STEPS = 3
DRAFT_TOKENS = 5


def test_replays_give_the_bits_of_steps_without_a_graph(rig: Rig) -> None:
    assert differing_steps(rig) == []


def differing_steps(rig: Rig) -> list[str]:
    """Run every bucket of rows and a draft: without a graph, by replays, and by replays after those of all others."""
    plan = load_plan(rig.device, rig.bundle, "llm")
    shapes = [*(StepShape(each, 1, each) for each in buckets(rig.slots)), StepShape(1, DRAFT_TOKENS, DRAFT_TOKENS)]
    steps = StepRig(rig.device, plan, rig.slots, shapes)
    inputs = {each.shape: list(following_inputs(steps, each.shape)) for each in steps.rigged}
    eager = {each.shape: steps.play(each, inputs[each.shape], captured=False) for each in steps.rigged}
    assert all(np.isfinite(played.logits).all() for played in eager.values())
    differing = []
    # The other way round the second time, so that each comes after graphs that it did not come after before.
    for order in (steps.rigged, steps.rigged[::-1]):
        for each in order:
            expected, played = eager[each.shape], steps.play(each, inputs[each.shape], captured=True)
            if not all(map(np.array_equal, expected.logits, played.logits)):
                differing.append(f"{each.shape}: logits")
            if expected.slots != played.slots:
                differing.append(f"{each.shape}: slots")
    return differing


def following_inputs(steps: StepRig, shape: StepShape) -> Iterator[StepInputs]:
    """Yield steps that follow one another, in rows that are not at the same position."""
    for step in range(STEPS):
        starts = np.arange(shape.rows, dtype=np.int64) + step * shape.tokens
        yield random_inputs(shape, steps.embedding_size, starts, seed=step)


class IdleGraph:
    def replay(self) -> None: ...


class ForgetfulDevice(SimulatedDevice):
    """A device whose graphs do nothing."""

    def capture(self, work: Callable[[], Result], stream: Stream) -> tuple[Result, SimulatedGraph]:
        results, _ = super().capture(work, stream)
        return results, cast(SimulatedGraph, IdleGraph())


def test_a_graph_that_does_something_else_is_found(tmp_path: Path) -> None:
    found = differing_steps(simulated_rig(tmp_path / "tiny", ForgetfulDevice(2**28, threads=1)))
    assert any(each.endswith("logits") for each in found)
    assert any(each.endswith("slots") for each in found)
