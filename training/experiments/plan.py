"""The runs of the experiments: each differs from the common setting in one thing."""

from dataclasses import dataclass, replace
from typing import Literal

COMMON_LAYERS, COMMON_REDUCTION = 2, 4
DEPTHS = (1, 2, 4, 8)
REDUCTIONS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Setting:
    """One run. With `encoder_layers` so many of the encoder's last layers are run in every step, and learn if it `tunes_encoder`.

    Without, the encoder's finished states are read from a cache.
    """

    layers: int = COMMON_LAYERS
    reduction: int = COMMON_REDUCTION
    subsampling: Literal["stack", "uniform"] = "stack"
    encoder_layers: int = 0
    tunes_encoder: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the run's files; different settings have different names."""
        parts = [f"layers{self.layers}", f"{self.subsampling}{self.reduction}"]
        if self.encoder_layers:
            parts.append(f"{'tuned' if self.tunes_encoder else 'frozen'}{self.encoder_layers}")
        return "-".join([*parts, f"seed{self.seed}"])


COMMON = Setting()
FROZEN_ENCODER = replace(COMMON, encoder_layers=1)
TUNED_ENCODER = replace(FROZEN_ENCODER, tunes_encoder=True)

FAMILIES: dict[str, tuple[Setting, ...]] = {
    "seeds": tuple(replace(COMMON, seed=seed) for seed in (0, 1)),
    "depth": tuple(replace(COMMON, layers=layers) for layers in DEPTHS),
    "stacking": tuple(replace(COMMON, reduction=reduction) for reduction in REDUCTIONS),
    "uniform": tuple(replace(COMMON, reduction=reduction, subsampling="uniform") for reduction in (4, 8, 16)),
    "encoder": (FROZEN_ENCODER, TUNED_ENCODER),
}
"""The tables, by the thing that is changed. A setting may stand in several of them and is run once."""


def plan_runs(families: tuple[str, ...]) -> list[Setting]:
    """Return the settings of these families, each once, the cheapest first."""
    unique = dict.fromkeys(setting for family in families for setting in FAMILIES[family])
    return sorted(unique, key=lambda each: (each.encoder_layers, (each.layers + 1) / each.reduction))
