"""Build a TensorRT-RTX plan of a part of a real size with random weights, and print its rows for docs/tensorrt_plans.md.

    python -m tests.export.checkpoints.real_size_plans qwen3-asr-0.6b llm --folder DIR --precision bf16

Needs no GPU. The LLM's graph is the one that a GPU gets, the encoder's the one for CPUs, as for the table of families.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.granite_speech import read_shape
from export.checkpoints.language_model import UNTIED, text_tensors
from export.checkpoints.llama import read_text_model
from export.checkpoints.qwen3_asr import read_encoder
from export.markdown import table
from export.tensorrt_inspect import inspect_plan
from export.tensorrt_parts import Part, llm_part
from export.tensorrt_plans import build_part
from export.tensorrt_profiles import Limits
from models.encoders import granite, qwen3_asr
from models.graph.linear import float32_linear
from models.graph.writer import GraphBuilder
from models.llms.llama import Llama
from models.runtimes.cuda.tensorrt_library import TensorRTError, load_tensorrt
from tests.export.checkpoints.real_size import SIZES, write_checkpoint

POSITIONS = 1024
FRAMES = {"frames": (8, 500, 3000)}


def read_llama(checkpoint: Checkpoint) -> Llama:
    """Return the LLM of a checkpoint."""
    config: dict[str, Any] = {"rms_norm_eps": 1e-6, **checkpoint.config["text_config"], **UNTIED}
    return read_text_model(text_tensors(checkpoint.tensors), config, checkpoint.name)


def build_encoder(checkpoint: Checkpoint) -> GraphBuilder:
    """Return the encoder's graph for CPUs, in float32."""
    config, tensors, place = checkpoint.config, checkpoint.tensors, checkpoint.name
    if checkpoint.model_type == "qwen3_asr":
        audio = config["audio_config"]
        chunk = 2 * audio["n_window"]
        arrays = read_encoder(tensors.part("audio_tower."), audio, place)
        return qwen3_asr.build_encoder(arrays, chunk, audio["n_window_infer"] // chunk, float32_linear)
    encoder = tensors.part("encoder.")
    return granite.build_encoder(read_shape(config["encoder_config"], encoder, config, place, tells_letters=False), encoder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SIZES))
    parser.add_argument("part", choices=("llm", "encoder"))
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is kept")
    parser.add_argument("--precision", default="bf16", help="of the LLM's weights (default: %(default)s)")
    parser.add_argument("--gpu", default="sm_80")
    options = parser.parse_args(arguments)
    if not (options.folder / options.name / "tokenizer_config.json").exists():
        write_checkpoint(options.name, options.folder / options.name)
    checkpoint = Checkpoint(options.folder / options.name, options.name)
    if options.part == "llm":
        part = llm_part(lambda: read_llama(checkpoint), options.precision, POSITIONS, Limits())
    else:
        part = Part("encoder", "fp32", 0, [FRAMES], lambda: build_encoder(checkpoint))
    library = load_tensorrt("tensorrt_rtx")
    with tempfile.TemporaryDirectory(prefix="plan-", dir=options.folder) as scratch:
        try:
            built = build_part(library, part, options.gpu, Path(scratch))
        except TensorRTError as error:
            print(f"{options.name}, {options.part}: {error}", file=sys.stderr)
            return 1
    first = [options.name, options.part, options.gpu, part.precision]
    sizes = [_mb(len(built.content)), f"{built.processor_s:.1f} s", f"{built.peak_memory_bytes / 1e9:.1f} GB"]
    print(table(("Model", "Part", "GPU", "Weights", "Plan", "Build", "Peak memory"), [[*first, *sizes]]))
    try:
        report = inspect_plan(library, built.content)
    except TensorRTError as error:
        print(f"{_mb(built.activation_bytes)} of activations; {error}")
        return 0
    print(f"{_mb(report.weight_bytes)} of weights in the plan")
    for each in report.profiles:
        print(
            f"{each.kernels} kernels a step, {each.kernels_per_layer()} per layer, {len(each.attentions)} fused attentions, "
            f"{each.waits} waits, {_mb(each.activation_bytes)} of activations"
        )
    return 0


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
