"""Granite-speech 3.3 and 4: a conformer, a Q-Former, and a Granite; some have a CTC head for the LLM's tokens, which drafts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from export.bundle_parts import MAX_AUDIO_S, TRANSCRIPTION_INSTRUCTIONS, TRANSLATION_INSTRUCTIONS
from export.checkpoints.chat_template import INSTRUCTION, SPEECH, read_chat_template
from export.checkpoints.checkpoint import Checkpoint, read_layers, read_value, require_shape
from export.checkpoints.conversion import Conversion, read_licence
from export.checkpoints.language_model import UNTIED, LanguageModel, language_model_of, text_tensors
from export.checkpoints.lora import lora_scale, merge_lora
from export.checkpoints.safetensors_file import CheckpointError, Tensors, read_file
from models.bundle.schema import BundleDescription
from models.bundle.sections import PromptSection
from models.encoders.granite import GraniteConfig, GraniteSection, build_encoder
from models.graph.linear import Float32
from models.llms.llama import Llama
from models.projectors.qformer import CtcHead, QformerConfig, QformerCtcSection, QformerSection, build_projector
from models.text.tokeniser import plain_words

PUBLISHED_INSTRUCTION = "can you transcribe the speech into a written format?"
TRANSLATED_INTO = ("English", "French", "German", "Spanish", "Portuguese", "Japanese", "Italian", "Mandarin")
"""Languages that the cards name for translations from English or into it."""
OTHER_NAMES = {"Chinese": "Mandarin"}
BEFORE_KEYWORDS = " Keywords: "
HEAD_FILE, ADAPTER_FILE = "out_llm.safetensors", "adapter_model.safetensors"
STATES_PER_S = 50.0
DRAFT_SUBSAMPLING = 4


def convert_granite_speech(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write a Granite-speech, with its LoRA adapter merged."""
    config, place, tensors = checkpoint.config, checkpoint.name, checkpoint.tensors
    text = {"rms_norm_eps": 1e-6, **read_value(config, "text_config", place), **UNTIED}
    if text.get("model_type") != "granite":
        raise CheckpointError(
            f"{place} has an LLM of the kind {text.get('model_type')!r}; known behind Granite-speech is granite"
        )
    llm = language_model_of(checkpoint, text_tensors(tensors), text, read_chat_template(checkpoint), place)
    llm = replace(llm, llama=merge_adapter(checkpoint, llm.llama, float(text.get("residual_multiplier", 1)), text))

    audio = read_value(config, "encoder_config", place)
    encoder_tensors = tensors.part("encoder.")
    width, features = read_value(audio, "hidden_dim", place), read_value(audio, "input_dim", place)
    require_shape(encoder_tensors, "input_linear.weight", (width, features), place)
    head = read_head(checkpoint)
    shape = read_shape(audio, encoder_tensors, config, place, tells_letters=head is not None)
    read_width = width * (1 + len(shape.concatenated))
    states_width = read_width + (head is not None)
    encoder = conversion.save_encoder(
        build_encoder(shape, encoder_tensors, conversion.block_linear),
        GraniteSection,
        "granite",
        mel_bins=features // 2,
        width=states_width,
        states_per_s=STATES_PER_S,
    )

    projector, asked = tensors.part("projector."), read_value(config, "projector_config", place)
    window, rate = int(config.get("window_size", 15)), int(config.get("downsample_rate", 5))
    qformer = QformerConfig(
        layers=read_layers(asked, "num_hidden_layers", projector, "qformer.encoder.layer.", place),
        heads=read_value(asked, "num_attention_heads", place),
        window=window,
        norm_epsilon=float(asked.get("layer_norm_eps", 1e-12)),
    )
    queries = (1, window // rate, read_value(asked, "hidden_size", place))
    require_shape(projector, "query", queries, place)
    key = "qformer.encoder.layer.0.crossattention.attention.key.weight"
    require_shape(projector, key, (queries[2], read_width), place)
    scaled = scale_frames(projector, float(text.get("embedding_multiplier", 1)))
    how = conversion.precision
    section = conversion.save_projector(
        build_projector(qformer, scaled, how.speech, head, how.head),
        QformerSection if head is None else QformerCtcSection,
        "qformer" if head is None else "qformer_ctc",
        states_width,
        subsampling=rate,
        embedding_size=len(scaled["linear.bias"]),
        boundary_instructions=(PUBLISHED_INSTRUCTION, *TRANSCRIPTION_INSTRUCTIONS),
        **({} if head is None else {"draft_subsampling": head.subsampling}),
    )
    return conversion.describe(
        encoder=encoder,
        projector=section,
        llm=llm.write(conversion.options.precision, conversion.folder),
        prompt=_prompt(llm),
        licences={place: read_licence(checkpoint)},
    )


def read_shape(
    audio: dict[str, Any], tensors: Tensors, config: dict[str, Any], place: str, *, tells_letters: bool
) -> GraniteConfig:
    """Return the encoder's shape. Raises `CheckpointError`."""
    block, longest = read_value(audio, "context_size", place), round(MAX_AUDIO_S * STATES_PER_S)
    if block not in range(1, longest + 1):
        raise CheckpointError(f"{place} has an encoder with blocks of {block!r} states; known are 1 to {longest}")
    return GraniteConfig(
        layers=read_layers(audio, "num_layers", tensors, "layers.", place),
        heads=read_value(audio, "num_heads", place),
        head_size=audio.get("dim_head") or read_value(audio, "hidden_dim", place) // read_value(audio, "num_heads", place),
        block=block,
        largest_distance=read_value(audio, "max_pos_emb", place),
        concatenated=tuple(audio.get("cat_hidden_layers") or config.get("cat_hidden_layers") or ()),
        tells_letters=tells_letters,
    )


def scale_frames(projector: Tensors, multiplier: float) -> dict[str, Float32]:
    """Return the projector's weights; its frames are multiplied as the LLM multiplies its own embeddings."""
    weights = dict(projector)
    for name in ("linear.weight", "linear.bias"):
        weights[name] = projector[name] * np.float32(multiplier)
    return weights


def read_head(checkpoint: Checkpoint) -> CtcHead | None:
    """Return the CTC head for the LLM's tokens, if the checkpoint has one. Raises `CheckpointError`."""
    if not checkpoint.has(HEAD_FILE):
        return None
    tensors = Tensors(read_file(checkpoint.folder / HEAD_FILE), f"{checkpoint.name} ({HEAD_FILE})")
    width = read_value(read_value(checkpoint.config, "encoder_config", checkpoint.name), "hidden_dim", checkpoint.name)
    labels = read_value(read_value(checkpoint.config, "text_config", checkpoint.name), "vocab_size", checkpoint.name)
    found = tensors.place("weight").shape
    if len(found) != 2 or found[1] != width or found[0] > labels + 1:
        raise CheckpointError(
            f"{checkpoint.name} has a head in {HEAD_FILE} of {list(found)}, for {labels} tokens and {width} wide states"
        )
    return CtcHead(tensors["weight"], tensors["bias"], DRAFT_SUBSAMPLING)


def merge_adapter(checkpoint: Checkpoint, llama: Llama, residual: float, config: Mapping[str, Any]) -> Llama:
    """Return the LLM with the LoRA adapter that is active for speech added to its weights; 4.x have none."""
    if not checkpoint.config.get("has_lora_adapter") and not checkpoint.has(ADAPTER_FILE):
        return llama
    if not checkpoint.has(ADAPTER_FILE):
        raise CheckpointError(f"{checkpoint.name} says that it has a LoRA adapter and lacks {ADAPTER_FILE}")
    options = checkpoint.read_json("adapter_config.json")
    factors = {"q_proj": float(config.get("attention_multiplier", 1)) * llama.config.head_size**0.5}
    factors |= {"o_proj": residual, "down_proj": residual}
    adapter = Tensors(read_file(checkpoint.folder / ADAPTER_FILE), checkpoint.name)
    return merge_lora(llama, adapter, lora_scale(options, checkpoint.name), checkpoint.name, factors)


def _prompt(llm: LanguageModel) -> PromptSection:
    encode = llm.tokeniser.encode
    translations = {
        plain_words(asked.replace("English", name)): tuple(encode(f"translate the speech to {language}"))
        for name, language in {**dict(zip(TRANSLATED_INTO, TRANSLATED_INTO, strict=True)), **OTHER_NAMES}.items()
        for asked in TRANSLATION_INSTRUCTIONS
    }
    own = {"transcription": tuple(encode(PUBLISHED_INSTRUCTION)), "before_keywords": BEFORE_KEYWORDS, "published": translations}
    return llm.lay_out(f"{SPEECH}{INSTRUCTION}").model_copy(update=own)
