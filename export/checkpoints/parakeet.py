"""Parakeet's FastConformer as transformers saves it: the encoder alone, whatever head stands behind it."""

import math
from typing import Any

from export.bundle_parts import MAX_AUDIO_S, speech_precision
from export.checkpoints.canary_qwen import STATES_PER_S, encoder_linear, require_encoder, require_known_values
from export.checkpoints.checkpoint import Checkpoint, read_value
from export.checkpoints.conversion import Conversion
from models.encoders.fast_conformer import SUBSAMPLING, FastConformerConfig, FastConformerSection, build_encoder

NAMES = {
    "subsampling.layers.": "pre_encode.conv.",
    "subsampling.linear.": "pre_encode.out.",
    "self_attn.o_proj": "self_attn.linear_out",
    "relative_k_proj": "linear_pos",
    "bias_u": "pos_bias_u",
    "bias_v": "pos_bias_v",
    "conv.norm.": "conv.batch_norm.",
    **{f"self_attn.{part}_proj": f"self_attn.linear_{part}" for part in "qkv"},
}
"""Parts of transformers' names, and NeMo's."""
KNOWN = {
    "subsampling_factor": SUBSAMPLING,
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
    "hidden_act": "silu",
}


def convert_encoder(conversion: Conversion, checkpoint: Checkpoint) -> FastConformerSection:
    """Write the encoder. Raises `CheckpointError`."""
    place, precision = checkpoint.name, conversion.options.precision
    whole = "encoder_config" in checkpoint.config
    config: dict[str, Any] = checkpoint.config["encoder_config"] if whole else checkpoint.config
    require_known_values(KNOWN, config, "an encoder", place)
    weights = checkpoint.tensors.renamed({"encoder.": "", **({} if whole else {"": ""})})
    for old, new in NAMES.items():
        weights = weights.replaced(old, new)
    bins, width = read_value(config, "num_mel_bins", place), read_value(config, "hidden_size", place)
    shape = {
        "d_model": width,
        "n_heads": read_value(config, "num_attention_heads", place),
        "n_layers": read_value(config, "num_hidden_layers", place),
    }
    require_encoder(weights, shape, bins, place)
    built = FastConformerConfig(
        layers=shape["n_layers"],
        heads=shape["n_heads"],
        longest=math.ceil(MAX_AUDIO_S * STATES_PER_S) + 1,
        scale=math.sqrt(width) if config.get("scale_input", True) else 1.0,
    )
    build_encoder(built, bins, weights, encoder_linear(precision)).save(conversion.folder / "encoder.onnx")
    return FastConformerSection(
        architecture="fast_conformer",
        precision=speech_precision(precision),
        graph="encoder.onnx",
        mel_bins=bins,
        width=width,
        states_per_s=STATES_PER_S,
    )
