"""A gate for the engines of child processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fakes.engine_children import FileGate


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[FileGate]:
    """A gate: the child answers nothing while it is cleared."""
    gate = FileGate(tmp_path / "closed")
    yield gate
    gate.set()
