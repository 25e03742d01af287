"""Whisper of any size, from Hugging Face's safetensors or a CTranslate2 folder: weights by CTranslate2's names, and tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.bundle_parts import NO_SILENCE, write_encoder
from export.checkpoints.checkpoint import CTRANSLATE2_WEIGHTS, Checkpoint, read_layers, read_value, require_shape
from export.checkpoints.conversion import Conversion
from export.checkpoints.safetensors_file import CheckpointError, Tensors
from export.importers.ctranslate2 import WeightFileError, read_ctranslate2
from models.bundle.sections import SpeechTokens
from models.encoders.whisper import Arrays, WhisperSection
from models.graph.linear import Float32
from models.speech_decoders.whisper import read_tokens
from models.text.tokeniser import Tokeniser

ENGLISH_ONLY_VOCABULARY = 51_864
"""Tokens of the models whose names end in `.en`; the multilingual ones have more."""
ENCODER_LAYER = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
DECODER_LAYER = {
    **ENCODER_LAYER,
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
}
ENCODER_NORMS = {"self_attention/layer_norm": "self_attn_layer_norm", "ffn/layer_norm": "final_layer_norm"}
DECODER_NORMS = {**ENCODER_NORMS, "attention/layer_norm": "encoder_attn_layer_norm"}


@dataclass(frozen=True)
class WhisperWeights:
    """The arrays of the two parts by CTranslate2's names, the control tokens, and the tokeniser's file."""

    encoder: Arrays
    decoder: Arrays
    tokens: SpeechTokens


def read_whisper(checkpoint: Checkpoint) -> WhisperWeights:
    """Read a whole Whisper. Raises `CheckpointError`."""
    tokeniser = checkpoint.open_tokeniser()
    if checkpoint.is_ctranslate2:
        arrays = _read_ctranslate2(checkpoint)
        encoder, decoder = ({name: each for name, each in arrays.items() if name.startswith(part)} for part in ("enc", "dec"))
        vocabulary = len(decoder["decoder/embeddings/weight"])
        tokens = _speech_tokens(checkpoint, tokeniser, checkpoint.config, vocabulary != ENGLISH_ONLY_VOCABULARY)
        return WhisperWeights(encoder, decoder, tokens)
    tensors = _hugging_face_tensors(checkpoint)
    encoder = read_encoder(tensors.renamed({"model.encoder.": ""}), checkpoint.config, checkpoint.name)
    decoder = read_decoder(tensors, checkpoint.config, checkpoint.name)
    generation = checkpoint.read_json_if_any("generation_config.json") or checkpoint.config
    vocabulary = len(decoder["decoder/embeddings/weight"])
    listed = {
        "lang_ids": list((generation.get("lang_to_id") or {}).values()) or _language_ids(tokeniser),
        "suppress_ids": generation.get("suppress_tokens") or (),
        "suppress_ids_begin": generation.get("begin_suppress_tokens") or (),
    }
    multilingual = bool(generation.get("is_multilingual", vocabulary != ENGLISH_ONLY_VOCABULARY))
    return WhisperWeights(encoder, decoder, _speech_tokens(checkpoint, tokeniser, listed, multilingual))


def convert_encoder(conversion: Conversion, checkpoint: Checkpoint) -> WhisperSection:
    """Write the encoder alone, which hears the audio's own length. Raises `CheckpointError`."""
    if checkpoint.is_ctranslate2:
        arrays = {name: each for name, each in _read_ctranslate2(checkpoint).items() if name.startswith("encoder/")}
    else:
        tensors = _hugging_face_tensors(checkpoint).renamed({"model.encoder.": ""})
        arrays = read_encoder(tensors, checkpoint.config, checkpoint.name)
    return write_encoder(arrays, conversion.options.precision, conversion.folder, NO_SILENCE)


def read_encoder(tensors: Tensors, config: dict[str, Any], place: str) -> Arrays:
    """Return the encoder's arrays. Names of `tensors` begin with `conv1.`, `layers.0.` and so on. Raises `CheckpointError`."""
    layers, width = read_layers(config, "encoder_layers", tensors, "layers.", place), read_value(config, "d_model", place)
    require_shape(tensors, "conv1.weight", (width, read_value(config, "num_mel_bins", place), 3), place)
    arrays: Arrays = {"encoder/num_heads": np.array(read_value(config, "encoder_attention_heads", place), np.int16)}
    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            arrays[f"encoder/{name}/{part}"] = tensors[f"{name}.{part}"]
    arrays["encoder/position_encodings/encodings"] = tensors["embed_positions.weight"]
    for layer in range(layers):
        arrays |= read_layer(tensors, f"layers.{layer}", f"encoder/layer_{layer}", ENCODER_LAYER, ENCODER_NORMS)
    return arrays | read_norm(tensors, "layer_norm", "encoder/layer_norm")


def read_decoder(tensors: Tensors, config: dict[str, Any], place: str) -> Arrays:
    """Return the decoder's arrays. Raises `CheckpointError`."""
    layers = read_layers(config, "decoder_layers", tensors, "model.decoder.layers.", place)
    width = read_value(config, "d_model", place)
    vocabulary = read_value(config, "vocab_size", place)
    require_shape(tensors, "model.decoder.embed_tokens.weight", (vocabulary, width), place)
    embedding = tensors["model.decoder.embed_tokens.weight"]
    arrays: Arrays = {
        "decoder/num_heads": np.array(read_value(config, "decoder_attention_heads", place), np.int16),
        "decoder/embeddings/weight": embedding,
        "decoder/projection/weight": tensors[
            "proj_out.weight" if "proj_out.weight" in tensors else "model.decoder.embed_tokens.weight"
        ],
        "decoder/position_encodings/encodings": tensors["model.decoder.embed_positions.weight"],
    }
    for layer in range(layers):
        old, new = f"model.decoder.layers.{layer}", f"decoder/layer_{layer}"
        arrays |= read_layer(tensors, old, new, DECODER_LAYER, DECODER_NORMS)
    return arrays | read_norm(tensors, "model.decoder.layer_norm", "decoder/layer_norm")


def _hugging_face_tensors(checkpoint: Checkpoint) -> Tensors:
    """Return tensors with names that begin with `model.`, which some checkpoints leave out."""
    tensors = checkpoint.tensors
    if any(name.startswith("model.") for name in tensors):
        return tensors
    return tensors.renamed({"encoder.": "model.encoder.", "decoder.": "model.decoder.", "proj_out.": "proj_out."})


def read_layer(
    tensors: Tensors, old: str, new: str, linears: dict[str, tuple[str, ...]], norms: dict[str, str]
) -> dict[str, Float32]:
    """Return a layer's arrays: linear layers by the names that are joined in each, then normalisations."""
    arrays: dict[str, Float32] = {}
    for name, sources in linears.items():
        weights = [tensors[f"{old}.{source}.weight"] for source in sources]
        biases = [
            tensors[f"{old}.{source}.bias"] if f"{old}.{source}.bias" in tensors else np.zeros(len(weight), np.float32)
            for source, weight in zip(sources, weights, strict=True)
        ]
        arrays[f"{new}/{name}/weight"], arrays[f"{new}/{name}/bias"] = np.concatenate(weights), np.concatenate(biases)
    for name, source in norms.items():
        arrays |= read_norm(tensors, f"{old}.{source}", f"{new}/{name}")
    return arrays


def read_norm(tensors: Tensors, old: str, new: str) -> dict[str, Float32]:
    """Return the arrays of a normalisation."""
    return {f"{new}/gamma": tensors[f"{old}.weight"], f"{new}/beta": tensors[f"{old}.bias"]}


def _read_ctranslate2(checkpoint: Checkpoint) -> Arrays:
    """Return the arrays of a CTranslate2 folder; weights in 8 bits are turned back into numbers."""
    try:
        arrays = read_ctranslate2(checkpoint.folder / CTRANSLATE2_WEIGHTS)
    except (WeightFileError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{checkpoint.name} has a {CTRANSLATE2_WEIGHTS} that cannot be read: {error}") from None
    if "decoder/num_heads" not in arrays or "encoder/conv1/weight" not in arrays:
        raise CheckpointError(f"{checkpoint.name} is a CTranslate2 model but no Whisper, the one kind that is known")
    whole: Arrays = {}
    for name, array in arrays.items():
        scale = arrays.get(f"{name}_scale")
        if scale is not None:
            whole[name] = array.astype(np.float32) / scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
        elif not name.endswith("_scale"):
            whole[name] = array
    return whole


def _language_ids(tokeniser: Tokeniser) -> list[int]:
    """Return the tokens of languages, which follow the start one after the other up to the translation task."""
    names = tokeniser.special_tokens
    if not {"<|startoftranscript|>", "<|translate|>"} <= names.keys():
        return []
    return list(range(names["<|startoftranscript|>"] + 1, names["<|translate|>"]))


def _speech_tokens(checkpoint: Checkpoint, tokeniser: Tokeniser, listed: dict[str, Any], multilingual: bool) -> SpeechTokens:
    config: dict[str, Any] = {"lang_ids": listed.get("lang_ids") or _language_ids(tokeniser)}
    config |= {name: listed.get(name) or () for name in ("suppress_ids", "suppress_ids_begin")}
    # An id of -1 stands for a list of the program's own, which transformers leaves out too.
    config |= {name: [id for id in config[name] if id >= 0] for name in ("suppress_ids", "suppress_ids_begin")}
    try:
        tokens = read_tokens(tokeniser.special_tokens, config)
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.name} has a tokeniser that is not Whisper's: it lacks {error}") from None
    languages = tokens["languages"] if multilingual else {"en": tokens["languages"].get("en", tokens["start"])}
    return SpeechTokens(**{**tokens, "languages": languages}, multilingual=multilingual)
