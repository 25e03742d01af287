"""Parts that all reports share, as lines of Markdown."""

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return a table; what was not measured (None) is a dash."""
    body = [f"| {' | '.join('-' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body]


def conditions(result: dict[str, Any]) -> list[str]:
    """When, what and where was measured: the keys of `bench_machine.describe_run`, and `other_cpu_share`."""
    return [
        f"{result['date']}, revision `{result['git_revision']}`  ",
        f"{result['machine']}  ",
        f"Load average before the run {result['load_average_before']}; CPU taken by others during the measurement: "
        f"{100 * result['other_cpu_share']:.1f} % of the machine  ",
        f"Python {result['python']}, {', '.join(f'{name} {version}' for name, version in result['versions'].items())}",
        "",
    ]


def void_note(void: Sequence[str]) -> list[str]:
    """That the run is void and why; nothing where it is not."""
    if not void:
        return []
    return ["**VOID: these figures must not be quoted.** What did not hold:", "", *(f"- {each}" for each in void), ""]
