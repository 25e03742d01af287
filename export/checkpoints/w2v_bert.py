"""w2v-BERT 2.0 as transformers saves it: the encoder alone, whatever head stands behind it."""

import math

from export.bundle_parts import MAX_AUDIO_S
from export.checkpoints.checkpoint import Checkpoint, read_layers, read_value, require_known_values, require_shape
from export.checkpoints.conversion import Conversion
from models.encoders.w2v_bert import W2vBertConfig, W2vBertSection, build_encoder
from models.encoders.whisper import STATES_PER_S
from models.features.kaldi_fbank import STACKED

KNOWN = {"hidden_act": "swish", "position_embeddings_type": "relative_key", "layer_norm_eps": 1e-5}


def convert_encoder(conversion: Conversion, checkpoint: Checkpoint) -> W2vBertSection:
    """Write the encoder. Raises `CheckpointError`."""
    config, place = checkpoint.config, checkpoint.name
    require_known_values(KNOWN, config, "an encoder", place)
    weights = checkpoint.tensors
    if any(name.startswith("wav2vec2_bert.") for name in weights):
        weights = weights.renamed({"wav2vec2_bert.": ""})
    width, heads = read_value(config, "hidden_size", place), read_value(config, "num_attention_heads", place)
    bins = read_value(config, "feature_projection_input_dim", place)
    left, right = config.get("left_max_position_embeddings", 64), config.get("right_max_position_embeddings", 8)
    layers = read_layers(config, "num_hidden_layers", weights, "encoder.layers.", place)
    last = f"encoder.layers.{layers - 1}.self_attn"
    require_shape(weights, "feature_projection.projection.weight", (width, bins), place)
    require_shape(weights, f"{last}.distance_embedding.weight", (left + right + 1, width // heads), place)
    require_shape(weights, f"{last}.linear_q.weight", (width, width), place)
    shape = W2vBertConfig(layers, heads, left, right, longest=math.ceil(MAX_AUDIO_S * STATES_PER_S) + 1)
    graph = build_encoder(shape, weights, conversion.block_linear)
    return conversion.save_encoder(
        graph, W2vBertSection, "w2v_bert", mel_bins=bins // STACKED, width=width, states_per_s=STATES_PER_S
    )
