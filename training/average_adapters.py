"""Average the weights of adapters that were trained on from the same one, as exported files.

    python -m training.average_adapters --adapters FIRST.safetensors SECOND.safetensors --out AVERAGE.safetensors

Such an average often does better on speakers that neither has heard (arXiv 2109.01903). Boundary vectors, residual and
configuration are those of the first, for they were trained to go together with nothing else.
"""

import argparse
from pathlib import Path

import numpy as np

from models.projectors.subsample import TrainedAdapter, read_adapter

KEPT = ("boundary_before", "boundary_after", "residual.weight", "residual.bias")


def average(adapters: list[TrainedAdapter]) -> TrainedAdapter:
    """Return the average. Raises `ValueError` for adapters of different shapes."""
    first, *others = adapters
    shapes = [{name: weight.shape for name, weight in adapter.weights.items()} for adapter in adapters]
    if any(each != shapes[0] for each in shapes):
        raise ValueError("the adapters have different weights")
    weights = {
        name: weight if name in KEPT else np.stack([weight, *(other.weights[name] for other in others)]).mean(0, np.float32)
        for name, weight in first.weights.items()
    }
    return TrainedAdapter(weights, first.config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    average([read_adapter(path) for path in arguments.adapters]).save(arguments.out)


if __name__ == "__main__":
    main()
