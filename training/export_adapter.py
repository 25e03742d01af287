"""Write a checkpoint as `adapter.safetensors`: fp16 weights, and what serving must know of the configuration.

python -m training.export_adapter --checkpoint work/stage2/checkpoint.pt --out export/adapter.safetensors
"""

import argparse
from pathlib import Path

from training.checkpoint import export_adapter, load_adapter
from training.instructions import TRANSCRIBE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--blank-threshold", type=float, default=0.5, help="frames with a larger P(blank) are dropped")
    arguments = parser.parse_args()
    adapter = load_adapter(arguments.checkpoint)
    export_adapter(arguments.out, adapter, blank_threshold=arguments.blank_threshold, boundary_instructions=TRANSCRIBE)
    parameters = sum(weight.numel() for weight in adapter.state_dict().values())
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB, {parameters:,} parameters")


if __name__ == "__main__":
    main()
