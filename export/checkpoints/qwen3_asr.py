"""Qwen3-ASR: an encoder with windows of its own, a projector of two layers, and a Qwen3 that writes nothing but transcripts.

Two layouts are read: the hub's own (`thinker_config`, names that begin with `thinker.`) and that of transformers.
"""

from typing import Any

import numpy as np

from export.checkpoints.chat_template import new_chat_template
from export.checkpoints.checkpoint import Checkpoint, read_layers, read_value, require_shape
from export.checkpoints.conversion import Conversion, read_licence
from export.checkpoints.language_model import UNTIED, language_model_of
from export.checkpoints.safetensors_file import CheckpointError, Tensors
from export.checkpoints.whisper import ENCODER_LAYER, ENCODER_NORMS, read_layer, read_norm
from models.bundle.schema import BundleDescription
from models.bundle.sections import PromptSection, TranscriptsSection
from models.encoders.qwen3_asr import CONVOLUTIONS, Qwen3AsrSection, build_encoder, chunk_positions, states_of
from models.encoders.whisper import Arrays
from models.projectors import two_layers
from models.text.tokeniser import Tokeniser

LABEL = "language "
MARKER = "<asr_text>"
BEFORE_CONTEXT = "<|im_start|>system\n"
AFTER_CONTEXT = "<|im_end|>\n<|im_start|>user\n<|audio_start|>"
AFTER_SPEECH = "<|audio_end|><|im_end|>\n<|im_start|>assistant\n"
LANGUAGES = {
    "zh": "Chinese", "en": "English", "yue": "Cantonese", "ar": "Arabic", "de": "German", "fr": "French", "es": "Spanish",
    "pt": "Portuguese", "id": "Indonesian", "it": "Italian", "ko": "Korean", "ru": "Russian", "th": "Thai", "vi": "Vietnamese",
    "ja": "Japanese", "tr": "Turkish", "hi": "Hindi", "ms": "Malay", "nl": "Dutch", "sv": "Swedish", "da": "Danish",
    "fi": "Finnish", "pl": "Polish", "cs": "Czech", "fil": "Filipino", "fa": "Persian", "el": "Greek", "ro": "Romanian",
    "hu": "Hungarian", "mk": "Macedonian",
}  # fmt: skip
"""The names that the model writes, by their codes."""
HOPS_PER_S = 100


def convert_qwen3_asr(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write a Qwen3-ASR."""
    place, whole = checkpoint.name, checkpoint.config
    config = whole.get("thinker_config") or whole
    if "classify_num" in config or any("TokenClassification" in str(each) for each in whole.get("architectures") or ()):
        raise CheckpointError(f"{place} is a forced aligner, which writes no words; known is the Qwen3-ASR that does")
    audio = read_value(config, "audio_config", place)
    tokeniser = checkpoint.open_tokeniser()
    require_tokens(tokeniser, place)
    tensors, how = checkpoint.tensors, conversion.precision

    chunk, window = 2 * int(audio.get("n_window", 50)), int(audio.get("n_window_infer", 800))
    if window % chunk:
        raise CheckpointError(f"{place} has windows of {window} frames, which are no whole number of chunks of {chunk}")
    arrays = read_encoder(tensors.renamed({f"{name}audio_tower.": "" for name in ("thinker.", "model.", "")}), audio, place)
    width = read_value(audio, "d_model", place)
    encoder = conversion.save_encoder(
        build_encoder(how.prepare_encoder(arrays), chunk, window // chunk, how.speech),
        Qwen3AsrSection,
        "qwen3_asr",
        mel_bins=read_value(audio, "num_mel_bins", place),
        width=width,
        states_per_s=states_of(chunk) * HOPS_PER_S / chunk,
        window_s=window / HOPS_PER_S,
    )
    weights = _projector_tensors(tensors)
    graph, size = two_layers.build_projector(weights, width, linear=how.speech), len(weights["linear_2.weight"])
    projector = conversion.save_projector(graph, two_layers.TwoLayersSection, "two_layers", width, embedding_size=size)

    text = {"rms_norm_eps": 1e-6, **read_value(config, "text_config", place), **UNTIED, "model_type": "qwen3"}
    ends = {"eos_token_id": config.get("eos_token_id", whole.get("eos_token_id"))}
    template = new_chat_template("", {}, place)
    llm = language_model_of(checkpoint, _text_tensors(tensors), {**text, **_plain_rotation(text), **ends}, template, place)
    return conversion.describe(
        encoder=encoder,
        projector=projector,
        llm=llm.write(conversion.options.precision, conversion.folder),
        prompt=PromptSection(
            prefix=tuple(tokeniser.encode_template(BEFORE_CONTEXT)),
            after_instruction=tuple(tokeniser.encode_template(AFTER_CONTEXT)),
            suffix=tuple(tokeniser.encode_template(AFTER_SPEECH)),
            end_tokens=llm.ends,
        ),
        transcripts=TranscriptsSection(
            beginning=LABEL, marker=tokeniser.special_tokens[MARKER], languages=_spoken(whole.get("support_languages"))
        ),
        licences={place: read_licence(checkpoint)},
    )


def read_encoder(tensors: Tensors, config: dict[str, Any], place: str) -> Arrays:
    """Return the encoder's arrays: the layers by Whisper's names, the convolutions by their own. Raises `CheckpointError`."""
    layers, width = read_layers(config, "encoder_layers", tensors, "layers.", place), read_value(config, "d_model", place)
    if config.get("activation_function", "gelu") != "gelu" or config.get("scale_embedding"):
        raise CheckpointError(f"{place} has an encoder with another activation than gelu, or with scaled embeddings")
    bins, chunk = read_value(config, "num_mel_bins", place), 2 * int(config.get("n_window", 50))
    arrays: Arrays = {"encoder/num_heads": np.array(read_value(config, "encoder_attention_heads", place), np.int16)}
    for name in CONVOLUTIONS:
        for part in ("weight", "bias"):
            arrays[f"encoder/{name}/{part}"] = tensors[f"{name}.{part}"]
    channels = len(arrays["encoder/conv2d3/bias"])
    require_shape(tensors, "conv_out.weight", (width, channels * states_of(bins)), place)
    arrays["encoder/conv_out/weight"] = tensors["conv_out.weight"]
    arrays["encoder/position_encodings/encodings"] = chunk_positions(states_of(chunk), width)
    for layer in range(layers):
        arrays |= read_layer(tensors, f"layers.{layer}", f"encoder/layer_{layer}", ENCODER_LAYER, ENCODER_NORMS)
    return arrays | read_norm(tensors, "ln_post", "encoder/layer_norm")


def _projector_tensors(tensors: Tensors) -> Tensors:
    """Return the two layers, which are parts of the encoder in the hub's own layout."""
    own = {f"thinker.audio_tower.proj{number}.": f"linear_{number}." for number in (1, 2)}
    return tensors.renamed({**own, "model.multi_modal_projector.": "", "multi_modal_projector.": ""})


def _text_tensors(tensors: Tensors) -> Tensors:
    """Return the LLM's tensors by the names that it has alone."""
    own = {"thinker.model.": "model.", "thinker.lm_head.": "lm_head."}
    return tensors.renamed({**own, "model.language_model.": "model.", "lm_head.": "lm_head."})


def _plain_rotation(config: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary embedding's values. For speech and text alone the three positions of the published one are the same."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 1e6
    kind = rope.get("rope_type") or rope.get("type") or "default"
    plain = {"rope_theta": theta} if kind in ("default", "mrope") else {**rope, "rope_theta": theta}
    return {"rope_parameters": plain, "rope_scaling": None}


def _spoken(listed: list[str] | None) -> dict[str, str]:
    """Return the languages that a checkpoint lists, or all."""
    return {code: name for code, name in LANGUAGES.items() if listed and name in listed} or LANGUAGES


def require_tokens(tokeniser: Tokeniser, place: str) -> None:
    """Raise `CheckpointError` unless the tokeniser has the special tokens of the prompt and of transcripts."""
    for name in ("<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>", MARKER):
        if name not in tokeniser.special_tokens:
            raise CheckpointError(f"{place} has a tokeniser without {name}, which Qwen3-ASR needs")
