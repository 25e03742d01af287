"""Checkpoints that are damaged in one way, and what is said of them."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

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


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the `config.json` of a checkpoint."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a checkpoint that has them in one file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
