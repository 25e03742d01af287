"""Write a checkpoint as `adapter.safetensors`: fp16 weights, and what serving must know of the configuration.

python -m training.export_adapter --checkpoint work/stage2/checkpoint.pt --out export/adapter.safetensors
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from training.checkpoint import load_adapter
from training.instructions import TRANSCRIBE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--blank-threshold", type=float, default=0.5, help="frames with a larger P(blank) are dropped")
    arguments = parser.parse_args()
    adapter = load_adapter(arguments.checkpoint)
    config = {
        **asdict(adapter.config),
        "blank_threshold": arguments.blank_threshold,
        "boundary_instructions": TRANSCRIBE,
    }
    weights = {name: weight.to(torch.float16).contiguous() for name, weight in adapter.state_dict().items()}
    save_file(weights, arguments.out, metadata={"config": json.dumps(config)})
    print(
        f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB, {sum(w.numel() for w in weights.values()):,} parameters"
    )


if __name__ == "__main__":
    main()
