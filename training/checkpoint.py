"""Save and load training state; a checkpoint is written whole or not at all."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open

from models.projectors.subsample import TrainedAdapter
from training.adapter import Adapter, AdapterConfig, SubsampledTransformer

Kind = TypeVar("Kind", bound=SubsampledTransformer)


def save_checkpoint(
    path: Path, adapter: SubsampledTransformer, optimizer: torch.optim.Optimizer, step: int, history: list[dict[str, Any]]
) -> None:
    partial = path.with_suffix(".partial")
    content = {
        "config": asdict(adapter.config),
        "adapter": adapter.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "history": history,
    }
    torch.save(content, partial)
    partial.replace(path)


def load_adapter(path: Path) -> Adapter:
    """Return the adapter of a checkpoint, in evaluation mode."""
    content = torch.load(path, weights_only=True)
    adapter = Adapter(AdapterConfig(**content["config"]))
    adapter.load_state_dict(content["adapter"])
    return adapter.eval()


def export_adapter(path: Path, adapter: SubsampledTransformer, **values: Any) -> None:
    """Write the file that serving and `pull --adapter` take: fp16 weights, the configuration, and further `values` for it."""
    weights = {name: weight.detach().to("cpu", torch.float32).numpy() for name, weight in adapter.state_dict().items()}
    TrainedAdapter(weights, {**asdict(adapter.config), **values}).save(path)


def load_exported(path: Path, kind: type[Kind]) -> Kind:
    """Return the adapter of a file that `export_adapter` wrote, in evaluation mode and float32."""
    with safe_open(path, framework="pt") as stored:
        config = json.loads(stored.metadata()["config"])
        weights = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118
    known = {field.name for field in fields(AdapterConfig)}
    adapter = kind(AdapterConfig(**{name: value for name, value in config.items() if name in known}))
    adapter.load_state_dict(weights)
    return adapter.eval()


def resume(path: Path, adapter: SubsampledTransformer, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, Any]]]:
    """Restore in place; returns the number of finished steps and the history. (0, []) where there is no checkpoint."""
    if not path.exists():
        return 0, []
    content = torch.load(path, weights_only=True)
    adapter.load_state_dict(content["adapter"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"], content["history"]
