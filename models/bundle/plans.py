"""Find and add the TensorRT plans of a bundle. A plan is code for one builder version and one GPU architecture."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from models.bundle.io import Bundle, open_bundle, write_bundle
from models.bundle.schema import BundleDescription
from models.bundle.sections import PlanSection

DECODE_PROFILE = 0
PREFILL_PROFILE = 1
"""The optimisation profiles of a plan with slots: one new position per row, and many."""


class PlanError(RuntimeError):
    """The bundle has no plan that this machine can run. The message tells the operator how to build one."""


@dataclass(frozen=True)
class PlanKey:
    """The properties that a plan has to match exactly: library, its version, and GPU architecture, such as `sm_90`."""

    builder: str
    builder_version: str
    gpu: str

    def __str__(self) -> str:
        return f"{self.builder} {self.builder_version} on {self.gpu}"


def key_of(plan: PlanSection) -> PlanKey:
    return PlanKey(plan.builder, plan.builder_version, plan.gpu)


def rebuild_command(bundle: Bundle, part: str, key: PlanKey) -> str:
    """Return the command that builds the missing plan on the machine that will run it."""
    folder = shlex.quote(str(bundle.folder))
    return f"python -m export.tensorrt_plans --bundle {folder} --part {part} --builder {key.builder} --gpu {key.gpu}"


def find_plan(bundle: Bundle, part: str, key: PlanKey, *, positions: int = 0) -> PlanSection:
    """Return the plan of `part` for this runtime and GPU with the shortest slots of at least `positions`.

    `bundle.path(plan.file)` is its file, verified when the bundle was opened. Raises `PlanError` if there is none.
    """
    of_part = [plan for plan in bundle.manifest.plans if plan.part == part]
    fitting = [plan for plan in of_part if key_of(plan) == key]
    long_enough = [plan for plan in fitting if plan.max_positions >= positions]
    if long_enough:
        return min(long_enough, key=lambda plan: plan.max_positions)
    if fitting:
        longest = max(plan.max_positions for plan in fitting)
        found = f"those for {key} have slots of at most {longest} positions, and {positions} are asked for"
        extra = f" --positions {positions}"
    else:
        others = sorted({str(key_of(plan)) for plan in of_part})
        found = f"there are plans for {', '.join(others)}" if others else "there is none at all"
        extra = f" --positions {positions}" if positions else ""
    command = rebuild_command(bundle, part, key) + extra
    raise PlanError(f"Bundle {bundle.folder} has no plan of {part} for {key}: {found}. Build it with `{command}`.")


def add_plan(folder: Path, plan: PlanSection, content: Path) -> Bundle:
    """Move a built plan into the bundle and list it, in place of an earlier one of the same part, key and slots.

    `content` must be on the same disk, outside the bundle. A crash before `bundle.json` is rewritten leaves a bundle that is
    refused, never one with a wrong plan. Raises `BundleError` if the bundle is not whole.
    """
    manifest = open_bundle(folder).manifest
    replaced = [each for each in manifest.plans if _purpose(each) == _purpose(plan)]
    kept = [each for each in manifest.plans if each not in replaced]
    for each in replaced:
        (folder / each.file).unlink()
    (folder / plan.file).parent.mkdir(parents=True, exist_ok=True)
    os.replace(content, folder / plan.file)
    described = {name: getattr(manifest, name) for name in BundleDescription.model_fields}
    return write_bundle(folder, BundleDescription(**{**described, "plans": (*kept, plan)}))


def _purpose(plan: PlanSection) -> tuple[str, PlanKey, int]:
    return plan.part, key_of(plan), plan.max_positions
