"""What the steps found, as one page of Markdown and the same as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from kernels.markdown import table

Verdict = Literal["passed", "failed", "not run"]

SIMULATED = (
    "**The device is simulated: everything below ran on a CPU, and what is called TensorRT is ONNX Runtime that acts it. It "
    "shows that the code paths work, and what they compute in float32. Its times and its memory say nothing about a GPU.**"
)


@dataclass(frozen=True)
class Table:
    """Figures under a line that says what they are; cells are text as it is shown."""

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Findings:
    """What a step found. It has failed where there are `failures`, each a sentence; `notes` are what else is worth reading."""

    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepResult:
    """A step that was run, or could not be. `reason` says why it failed or was not run, and is empty where it passed."""

    name: str
    purpose: str
    verdict: Verdict
    reason: str
    seconds: float
    findings: Findings = Findings()


@dataclass(frozen=True)
class Head:
    """What the report is about. `versions` by library, `command` how to make it again."""

    device: str
    is_simulated: bool
    commit: str
    command: str
    versions: Mapping[str, str]


def exit_status(results: Sequence[StepResult]) -> int:
    """1 where a step failed."""
    return int(any(result.verdict == "failed" for result in results))


def markdown(head: Head, results: Sequence[StepResult], written: datetime) -> str:
    """The page: head, summary of all steps, then each step."""
    lines = ["# GPU check", ""]
    if head.is_simulated:
        lines += [SIMULATED, ""]
    facts = [("device", head.device), ("commit", head.commit), ("written", f"{written:%Y-%m-%d %H:%M} UTC")]
    facts += [("made by", f"`{head.command}`"), *head.versions.items()]
    lines += [table(["", ""], facts), "", "## Summary", ""]
    summary = [(result.name, result.verdict, f"{result.seconds:.1f}", _cell(result.reason)) for result in results]
    lines += [table(["step", "verdict", "seconds", "reason"], summary)]
    for result in results:
        lines += ["", f"## {result.name}", "", f"{result.purpose} **{result.verdict.capitalize()}.**"]
        if result.reason:
            lines += ["", *(f"> {line}" for line in result.reason.splitlines())]
        for note in result.findings.notes:
            lines += ["", note]
        for each in result.findings.tables:
            lines += ["", f"{each.title}:", "", table(each.heading, [[_cell(cell) for cell in row] for row in each.rows])]
    return "\n".join(lines) + "\n"


def write_report(page: Path, head: Head, results: Sequence[StepResult]) -> None:
    """Write `page` and beside it the same as `.json`. Called after each step, so that a crash leaves what was found."""
    written = datetime.now(UTC)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(markdown(head, results, written))
    content = {"written": written.isoformat(), **asdict(head), "steps": [asdict(result) for result in results]}
    page.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


def _cell(text: str) -> str:
    """In one cell of a table: one line, without what would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")
