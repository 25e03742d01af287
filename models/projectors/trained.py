"""What training wrote of an adapter: `adapter.safetensors`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from models.protocols import BackendError, Float32


@dataclass(frozen=True)
class TrainedAdapter:
    """Weights by name, and the configuration they were trained with."""

    weights: dict[str, Float32]
    config: dict[str, Any]

    @property
    def boundary_before(self) -> Float32:
        return self.weights["boundary_before"]

    @property
    def boundary_after(self) -> Float32:
        return self.weights["boundary_after"]


def read_adapter(path: Path) -> TrainedAdapter:
    """Read `adapter.safetensors`; fp16 weights become float32. Raises `BackendError` where the file is not one."""
    try:
        with safe_open(path, framework="numpy") as file:
            config = json.loads(file.metadata()["config"])
            return TrainedAdapter({name: file.get_tensor(name).astype(np.float32) for name in file.keys()}, config)  # noqa: SIM118
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise BackendError(f"{path.name} could not be loaded: {error}") from error
