"""The adapter's weights, packed once for the operators."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels.reference.weights import LinearWeights, pack_linear

# Rows of 16 bytes, whatever the dtype of the result.
COLUMN_MULTIPLE = 8


@dataclass(frozen=True)
class LayerWeights:
    """One transformer layer; the norms are folded into `qkv` and `feed_forward_in`."""

    qkv: LinearWeights
    attention_out: LinearWeights
    feed_forward_in: LinearWeights
    feed_forward_out: LinearWeights


@dataclass(frozen=True)
class AdapterWeights:
    """`queries` is the output projection with the logit scale folded in. `side` gives, of each frame, the residual
    [embedding_size], the blank's logit, and columns of padding. `table` [vocabulary, embedding_size] is the LLM's.
    """

    input: LinearWeights
    layers: tuple[LayerWeights, ...]
    queries: LinearWeights
    side: LinearWeights
    table: Tensor
    cosines: Tensor
    sines: Tensor
    heads: int
    reduction: int
    is_stacking: bool
    blank_threshold: float

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def embedding_size(self) -> int:
        return self.table.shape[1]

    @property
    def encoder_width(self) -> int:
        return self.input.inner // self.reduction if self.is_stacking else self.input.inner

    @property
    def max_frames(self) -> int:
        return len(self.cosines)


def pack_adapter(
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    table: Tensor,
    dtype: torch.dtype,
    layer_dtype: torch.dtype,
    max_frames: int,
) -> AdapterWeights:
    """`weights` and `config` as `adapter.safetensors` has them; the result is on the device of `table`.

    Activations, table and head are in `dtype` (fp16 or bf16); the layers' weights in `layer_dtype`, the same or fp8. The head
    chooses the draft's tokens, so it is never fp8. `max_frames` bounds the frames of one call, all utterances together.
    """
    weights = {name: tensor.to(table.device, torch.float32) for name, tensor in weights.items()}

    def linear(name: str, norm: str | None = None) -> LinearWeights:
        folded = None if norm is None else (weights[f"{norm}.weight"], weights[f"{norm}.bias"])
        return pack_linear(weights[f"{name}.weight"], weights[f"{name}.bias"], layer_dtype, folded)

    def layer(name: str) -> LayerWeights:
        return LayerWeights(
            qkv=linear(f"{name}.qkv", f"{name}.attention_norm"),
            attention_out=linear(f"{name}.attention_out"),
            feed_forward_in=linear(f"{name}.feed_forward_in", f"{name}.feed_forward_norm"),
            feed_forward_out=linear(f"{name}.feed_forward_out"),
        )

    norm = weights["norm.weight"], weights["norm.bias"]
    scale = weights["logit_scale"]
    side = [torch.cat([weights[f"residual.{part}"], weights[f"blank.{part}"]]) for part in ("weight", "bias")]
    padding = -len(side[1]) % COLUMN_MULTIPLE
    cosines, sines = rotary_tables(max_frames, config["width"] // config["heads"], config["rope_theta"], table.device)
    return AdapterWeights(
        input=linear("input"),
        layers=tuple(layer(f"layers.{number}") for number in range(config["layers"])),
        queries=pack_linear(weights["output.weight"] * scale, weights["output.bias"] * scale, dtype, norm),
        side=pack_linear(functional.pad(side[0], (0, 0, 0, padding)), functional.pad(side[1], (0, padding)), dtype, norm),
        table=table.to(dtype).contiguous(),
        cosines=cosines,
        sines=sines,
        heads=config["heads"],
        reduction=config["reduction"],
        is_stacking=config["subsampling"] == "stack",
        blank_threshold=config["blank_threshold"],
    )


def map_tensors(weights: AdapterWeights, function: Callable[[Tensor], Tensor]) -> AdapterWeights:
    """Return the same weights with `function` of each tensor in its place."""

    def mapped(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, tuple):
            return tuple(map(mapped, value))
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{field.name: mapped(getattr(value, field.name)) for field in fields(value)})
        return value

    result: AdapterWeights = mapped(weights)
    return result


def rotary_tables(frames: int, head_size: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [frames, head_size / 2] float32 of rotary embedding in the half-rotation form."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angles = torch.arange(frames, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float().to(device), angles.sin().float().to(device)
