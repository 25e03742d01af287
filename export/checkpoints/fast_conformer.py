"""NeMo's FastConformer, the encoder of Canary-Qwen, and by itself as transformers saves Parakeet's, whatever head it has."""

import math

from export.bundle_parts import MAX_AUDIO_S
from export.checkpoints.checkpoint import Checkpoint, read_layers, read_value, require_known_values, require_shape
from export.checkpoints.conversion import Conversion
from export.checkpoints.nemo import PARAKEET_NAMES
from export.checkpoints.safetensors_file import CheckpointError, Tensors
from models.encoders.fast_conformer import SUBSAMPLING, FastConformerConfig, FastConformerSection, build_encoder
from models.features.log_mel import HOP_SAMPLES, SAMPLE_RATE_HZ

STATES_PER_S = SAMPLE_RATE_HZ / HOP_SAMPLES / SUBSAMPLING
PARAKEET = {
    "subsampling_factor": SUBSAMPLING,
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
    "hidden_act": "silu",
}


def write_encoder(
    conversion: Conversion, weights: Tensors, place: str, *, bins: int, width: int, layers: int, heads: int, scales: bool
) -> FastConformerSection:
    """Write an encoder of NeMo's names; one that `scales` multiplies what enters its layers. Raises `CheckpointError`."""
    channels = weights.place("pre_encode.conv.0.weight").shape[0]
    require_shape(weights, "pre_encode.out.weight", (width, channels * -(-bins // SUBSAMPLING)), place)
    if width % heads:
        raise CheckpointError(f"{place} has {heads} heads in its encoder, which do not divide its width of {width}")
    require_shape(weights, f"layers.{layers - 1}.self_attn.linear_q.weight", (width, width), place)
    longest = math.ceil(MAX_AUDIO_S * STATES_PER_S) + 1
    shape = FastConformerConfig(layers, heads, longest, math.sqrt(width) if scales else 1.0)
    graph = build_encoder(shape, bins, weights, conversion.block_linear)
    return conversion.save_encoder(
        graph, FastConformerSection, "fast_conformer", mel_bins=bins, width=width, states_per_s=STATES_PER_S
    )


def convert_encoder(conversion: Conversion, checkpoint: Checkpoint) -> FastConformerSection:
    """Write Parakeet's encoder. Raises `CheckpointError`."""
    place = checkpoint.name
    whole = "encoder_config" in checkpoint.config
    config = checkpoint.config["encoder_config"] if whole else checkpoint.config
    require_known_values(PARAKEET, config, "an encoder", place)
    weights = checkpoint.tensors.renamed({"encoder.": "", **({} if whole else {"": ""})})
    for old, new in PARAKEET_NAMES.items():
        weights = weights.replaced(old, new)
    return write_encoder(
        conversion,
        weights,
        place,
        bins=read_value(config, "num_mel_bins", place),
        width=read_value(config, "hidden_size", place),
        layers=read_layers(config, "num_hidden_layers", weights, "layers.", place),
        heads=read_value(config, "num_attention_heads", place),
        scales=config.get("scale_input", True),
    )
