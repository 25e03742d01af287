"""Turn a checkpoint that drops 3 of 4 encoder states into one that stacks all 4, to train it further.

    python -m training.expand_input_layer --checkpoint work/ctc/checkpoint.pt --out work/ctc-stack/checkpoint.pt

The expanded layer starts as the mean over the 4 states: training with a random phase has made each of them a valid input.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor


def expand_weight(weight: Tensor, reduction: int) -> Tensor:
    """[width, encoder_width] -> [width, reduction * encoder_width], the mean over `reduction` states."""
    return torch.cat([weight / reduction] * reduction, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    content = torch.load(arguments.checkpoint, weights_only=True)
    config, weights = content["config"], content["adapter"]
    if config["subsampling"] != "uniform":
        raise SystemExit("Only an adapter with uniform subsampling can be expanded.")
    config["subsampling"] = "stack"
    # Adam's moments are kept by the parameter's number; gradients shrink with the weights' share.
    index = list(weights).index("input.weight")
    moments = content["optimizer"]["state"][index]
    moments["exp_avg"] = expand_weight(moments["exp_avg"], config["reduction"])
    moments["exp_avg_sq"] = expand_weight(moments["exp_avg_sq"], config["reduction"]) / config["reduction"]
    weights["input.weight"] = expand_weight(weights["input.weight"], config["reduction"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, arguments.out)


if __name__ == "__main__":
    main()
