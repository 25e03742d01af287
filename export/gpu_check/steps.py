"""The order of the steps, and what happens where one fails."""

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from export.gpu_check.report import Findings, StepResult, Verdict

Subject = TypeVar("Subject")
ROOT = Path(__file__).parent.parent.parent
"""Of the checkout."""
LAST_LINES = 12
"""Of a traceback, in the report."""


@dataclass(frozen=True)
class Step(Generic[Subject]):
    """Something to find out about a subject. `needs` names earlier steps, without whose success this one says nothing."""

    name: str
    purpose: str
    run: Callable[[Subject], Findings]
    needs: tuple[str, ...] = ()


def choose(steps: Sequence[Step[Subject]], only: Sequence[str]) -> list[Step[Subject]]:
    """The steps of these names and all that they need, in their order; all steps where no name is given."""
    by_name = {step.name: step for step in steps}
    if unknown := [name for name in only if name not in by_name]:
        raise ValueError(f"there is no step {', '.join(unknown)}, only {', '.join(by_name)}")
    wanted = set(only) or set(by_name)
    for step in reversed(steps):
        if step.name in wanted:
            wanted.update(step.needs)
    return [step for step in steps if step.name in wanted]


def run_steps(steps: Sequence[Step[Subject]], subject: Subject) -> Iterator[StepResult]:
    """Run one after the other. What raises has failed, and what needs it is not run; everything else goes on."""
    passed: set[str] = set()
    for step in steps:
        missing = [name for name in step.needs if name not in passed]
        if missing:
            result = StepResult(step.name, step.purpose, "not run", f"needs {', '.join(missing)}", 0.0)
        else:
            print(f"{step.name}: {step.purpose}", file=sys.stderr, flush=True)
            result = _run(step, subject)
        if result.verdict == "passed":
            passed.add(step.name)
        print(f"{step.name}: {result.verdict} {result.reason}".rstrip(), file=sys.stderr, flush=True)
        yield result


def _run(step: Step[Subject], subject: Subject) -> StepResult:
    started_s = time.monotonic()
    try:
        findings = step.run(subject)
    except Exception as error:  # whatever it is, the next steps are worth running
        *_, last = traceback.format_exception_only(error)
        where = "".join(traceback.format_tb(error.__traceback__)).replace(f"{ROOT}/", "").splitlines()[-LAST_LINES:]
        findings = Findings(notes=("\n".join(["```", *where, "```"]),), failures=(last.strip(),))
    verdict: Verdict = "failed" if findings.failures else "passed"
    seconds = time.monotonic() - started_s
    return StepResult(step.name, step.purpose, verdict, "; ".join(findings.failures), seconds, findings)
