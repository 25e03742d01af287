"""Train the adapter between any encoder and any LLM that `thinbridge pull` knows, as SLM does (arXiv 2310.00230).

    python -m training.train --encoder openai/whisper-base --llm Qwen/Qwen2.5-0.5B-Instruct --manifest speech.jsonl --out work/slm

Encoder and LLM stay as they are. Of the encoder's states each 4th is kept, transformer layers and a projection turn them into
vectors that the LLM reads behind the instruction, and the loss is that of the next token of the text. The manifest has a JSON
object a line, with `audio` (a file, relative to the manifest), `instruction` and `text`. A second run goes on from the last
checkpoint, and gives what one run would have given. At the end `adapter.safetensors` is what `thinbridge pull --adapter` takes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encoder", required=True, metavar="NAME", help="a local folder or a hub id: Whisper, Parakeet, w2v-BERT 2.0"
    )
    parser.add_argument("--llm", required=True, metavar="NAME", help="likewise, or a GGUF file")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--validation", type=Path, help="manifest that is held out (default: a fixed one in 25 of the other)")
    parser.add_argument("--validation-lines", type=int, default=100, help="held-out lines that are tried (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of states, checkpoints, history and adapter")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--warm-up", type=int, default=500, help="steps (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, help="of the layers (default: the LLM's)")
    parser.add_argument("--heads", type=int, help="default: one for each 64 of the width")
    parser.add_argument(
        "--reduction", type=int, help="states of which one is kept (default: what leaves 12.5 a second, 4 of Whisper's)"
    )
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--validate-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--validation-tokens", type=int, default=200, help="of an answer at most (default: %(default)s)")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the LLM (default: bfloat16 on a GPU, float32 on a CPU)"
    )
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: one for each core)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from training.trainer import PROBLEMS, run

    try:
        file = run(arguments)
    except PROBLEMS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{file}: serve it by\n  thinbridge pull {arguments.encoder} --llm {arguments.llm} --adapter {file} --name slm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
