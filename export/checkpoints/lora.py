"""Merging of LoRA adapters into the weights of an LLM, one tensor at a time (arXiv 2106.09685)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from export.checkpoints.checkpoint import read_value
from export.checkpoints.safetensors_file import CheckpointError, Tensors
from models.graph.lazy_weights import Compute, change_weights
from models.graph.linear import Float32
from models.llms.llama import Llama

FIRST, SECOND = ".lora_A.", ".lora_B."


def lora_scale(options: Mapping[str, Any], place: str) -> float:
    """Return what the product of the two matrices is multiplied by. Raises `CheckpointError` for other kinds of adapters."""
    if options.get("use_dora") or options.get("bias", "none") != "none":
        raise CheckpointError(f"{place} has an adapter with DoRA or biases; known is plain LoRA")
    rank = float(read_value(dict(options), "r", place))
    return float(read_value(dict(options), "lora_alpha", place)) / (rank**0.5 if options.get("use_rslora") else rank)


def merge_lora(llama: Llama, adapter: Tensors, scale: float, place: str, factors: Mapping[str, float]) -> Llama:
    """Return the LLM with an adapter added to its weights, which are read when they are used.

    `factors` are what else the weights of a name are multiplied by in `llama`. Raises `CheckpointError`.
    """
    given = llama.weights

    def merged(name: str, first: str, second: str, factor: float) -> Float32:
        return np.asarray(given[name] + adapter[second] @ adapter[first] * np.float32(factor), np.float32)

    changes: dict[str, Compute] = {}
    for first in adapter:
        if FIRST not in first:
            continue
        second = first.replace(FIRST, SECOND)
        name = "model.layers." + first.split(".layers.", 1)[-1].split(FIRST)[0] + ".weight"
        if name not in given or second not in adapter:
            raise CheckpointError(f"{place} has an adapter for {first}, which belongs to no weight of the LLM")
        outputs, inputs = given[name].shape
        found = (adapter.place(second).shape[0], adapter.place(first).shape[-1])
        if found != (outputs, inputs):
            raise CheckpointError(f"{place} has an adapter for {first} of {list(found)}, and the weight is {[outputs, inputs]}")
        changes[name] = partial(merged, name, first, second, scale * factors.get(name.split(".")[-2], 1.0))
    return replace(llama, weights=change_weights(given, changes))
