"""Parakeet as transformers saves it: the FastConformer, whatever head stands behind it, and with its CTC head as a model."""

import math
from typing import Any

from export.bundle_parts import MAX_AUDIO_S, TRANSCRIPTION_INSTRUCTIONS, speech_precision
from export.checkpoints.canary_qwen import STATES_PER_S, encoder_linear, require_encoder, require_known_values
from export.checkpoints.checkpoint import Checkpoint, read_value, require_shape
from export.checkpoints.conversion import Conversion, read_languages, read_licence
from export.checkpoints.safetensors_file import CheckpointError
from models.bundle.schema import BundleDescription
from models.encoders.fast_conformer import SUBSAMPLING, FastConformerConfig, FastConformerSection, build_encoder
from models.projectors.ctc_head import CtcHeadSection, build_head

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


def convert_parakeet(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write a Parakeet whose CTC head writes the transcripts. Raises `CheckpointError`."""
    config, place, folder = checkpoint.config, checkpoint.name, conversion.folder
    labels, precision = read_value(config, "vocab_size", place), conversion.options.precision
    width = read_value(read_value(config, "encoder_config", place), "hidden_size", place)
    head = checkpoint.tensors
    require_shape(head, "ctc_head.weight", (labels, width, 1), place)
    if read_value(config, "pad_token_id", place) != labels - 1:
        raise CheckpointError(f"{place} has the blank {config['pad_token_id']} of {labels} labels; known is the last one")
    tokeniser = checkpoint.open_tokeniser()
    if tokeniser.vocabulary_size > labels:
        raise CheckpointError(f"{place} has a tokeniser of {tokeniser.vocabulary_size} tokens, and a head for {labels} labels")
    encoder = convert_encoder(conversion, checkpoint)
    weight, bias = head["ctc_head.weight"][:, :, 0], head["ctc_head.bias"]
    build_head(weight, bias, encoder_linear(precision)).save(folder / "ctc_head.onnx")
    (folder / "tokenizer.json").write_text(checkpoint.tokeniser_json, encoding="utf-8")
    languages = read_languages(checkpoint)
    return conversion.describe(
        encoder=encoder,
        projector=CtcHeadSection(
            architecture="ctc_head",
            precision=speech_precision(precision),
            graph="ctc_head.onnx",
            tokeniser="tokenizer.json",
            encoder_width=encoder.width,
            subsampling=1,
            vocabulary_size=labels,
            boundary_instructions=TRANSCRIPTION_INSTRUCTIONS,
            languages=languages if len(languages) == 1 else (),
        ),
        licences={place: read_licence(checkpoint)},
    )


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
