"""Errors of the cases as tables: a row for each kernel and dtype, a table for each set of shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ErrorTables:
    """Filled case by case."""

    rows: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    def add(self, kernel: str, dtype: str, shape: str, errors: Sequence[float]) -> None:
        """The largest of a case's errors."""
        self.rows.setdefault((kernel, dtype), {})[shape] = f"{max(errors):.0e}"

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]]:
        """Heading and rows of each table."""
        by_shapes: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for (kernel, dtype), row in self.rows.items():
            by_shapes.setdefault(tuple(row), []).append((kernel, dtype, *row.values()))
        for shapes, rows in by_shapes.items():
            yield ("kernel", "dtype", *shapes), tuple(rows)
