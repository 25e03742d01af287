"""Turn a checkpoint that drops 3 of 4 encoder states into one that stacks all 4, to train it further.

    python -m training.widen_input --checkpoint work/ctc/checkpoint.pt --out work/ctc-stack/checkpoint.pt

The wide input starts as the mean over the 4 states: training with a random phase has made each of them a valid input.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor


def widen(weight: Tensor, reduction: int) -> Tensor:
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
        raise SystemExit("Only an adapter with uniform subsampling can be widened.")
    config["subsampling"] = "stack"
    # Adam's moments are kept by the parameter's number; gradients shrink with the weights' share.
    index = list(weights).index("input.weight")
    moments = content["optimizer"]["state"][index]
    moments["exp_avg"] = widen(moments["exp_avg"], config["reduction"])
    moments["exp_avg_sq"] = widen(moments["exp_avg_sq"], config["reduction"]) / config["reduction"]
    weights["input.weight"] = widen(weights["input.weight"], config["reduction"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, arguments.out)


if __name__ == "__main__":
    main()
