"""Checkpoints that are damaged in one way, and what is said of them."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from export.checkpoints.safetensors_file import CheckpointError


def check_refusal(
    whole: Path, copy: Path, damage: Callable[[Path], object], expected: str, pull: Callable[[Path], object]
) -> None:
    """Damage a copy of a checkpoint, and check that pulling it is refused in one sentence that holds `expected`."""
    copytree(whole, copy)
    damage(copy)
    with pytest.raises(CheckpointError) as raised:
        pull(copy)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
