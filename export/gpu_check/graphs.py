"""Does a captured step do what the same step does without a graph, over slots that it updates in place?"""

from collections.abc import Iterator, Sequence

import numpy as np

from export.gpu_check.report import Findings, Table
from export.gpu_check.step_rig import Played, Rigged, StepRig, random_inputs
from export.gpu_check.workbench import Workbench
from models.runtimes.cuda.device import Device
from models.runtimes.cuda.llm_tensorrt import buckets
from models.runtimes.cuda.plan import Plan
from models.runtimes.cuda.steps import StepInputs, StepShape

STEPS = 3
DRAFT_TOKENS = 5


def check_graphs(bench: Workbench) -> Findings:
    """Every bucket of rows up to those of the scale, and a draft."""
    return graph_findings(bench.device, bench.loaded_llm.plan, bench.scale.slots)


def graph_findings(device: Device, plan: Plan, slots: int) -> Findings:
    """Steps without a graph, by replays, and by replays after those of all other shapes: the same bits of logits and slots."""
    shapes = [*(StepShape(each, 1, each) for each in buckets(slots)), StepShape(1, DRAFT_TOKENS, DRAFT_TOKENS)]
    rig = StepRig(device, plan, slots, shapes)
    inputs = {each.shape: list(_inputs(rig, each.shape)) for each in rig.rigged}
    eager = {each.shape: rig.play(each, inputs[each.shape], captured=False) for each in rig.rigged}
    first = {each.shape: rig.play(each, inputs[each.shape], captured=True) for each in rig.rigged}
    # The other way round, so that each comes after graphs that it did not come after before.
    again = {each.shape: rig.play(each, inputs[each.shape], captured=True) for each in reversed(rig.rigged)}
    table, failures = [], []
    for each in rig.rigged:
        verdicts = []
        for name, played in (("the first replays", first[each.shape]), ("replays after other graphs", again[each.shape])):
            differing = _differing(eager[each.shape], played)
            verdicts.append(f"{', '.join(differing)} differ" if differing else "same bits")
            failures += [f"{_name(each)}: {what} of {name} differ from the step without a graph" for what in differing]
        if not np.isfinite(eager[each.shape].logits).all():
            failures.append(f"{_name(each)}: the logits are not finite")
        table.append((_name(each), *verdicts))
    heading = ("step", "first replays", "replays after those of all others")
    return Findings((Table(f"{STEPS} steps each, beside the same without a graph", heading, tuple(table)),), (), tuple(failures))


def _inputs(rig: StepRig, shape: StepShape) -> Iterator[StepInputs]:
    """Steps that follow one another, in rows that are not at the same position."""
    for step in range(STEPS):
        starts = np.arange(shape.rows, dtype=np.int64) + step * shape.tokens
        yield random_inputs(shape, rig.embedding_size, starts, seed=step)


def _differing(expected: Played, played: Played) -> Sequence[str]:
    same_logits = all(map(np.array_equal, expected.logits, played.logits))
    return [name for name, same in (("logits", same_logits), ("slots", expected.slots == played.slots)) if not same]


def _name(rigged: Rigged) -> str:
    shape = rigged.shape
    return f"{shape.rows} row{'s' if shape.rows > 1 else ''} of {shape.tokens}"
