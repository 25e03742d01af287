"""Canary-Qwen as NeMo writes it (`SALM`): a FastConformer, a linear layer, and a Qwen3 with a LoRA adapter, which is merged.

The tokeniser and the LLM's shape are those of the LLM that the checkpoint names, of which no weights are read.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from export.bundle_parts import MAX_AUDIO_S, TRANSCRIPTION_INSTRUCTIONS, speech_precision
from export.checkpoints.chat_template import INSTRUCTION, SPEECH, new_chat_template
from export.checkpoints.checkpoint import Checkpoint, read_value, require_shape
from export.checkpoints.conversion import Conversion, read_licence
from export.checkpoints.language_model import LanguageModel, lay_out
from export.checkpoints.lora import lora_scale, merge_lora
from export.checkpoints.safetensors_file import CheckpointError, Tensors
from export.checkpoints.speech_llms import UNTIED, language_model_of, projector_values
from export.precisions import PRECISIONS
from models.bundle.schema import BundleDescription
from models.bundle.sections import PromptSection
from models.encoders.fast_conformer import SUBSAMPLING, FastConformerConfig, FastConformerSection, build_encoder
from models.features.log_mel import HOP_SAMPLES, SAMPLE_RATE_HZ
from models.graph.linear import INT8, Linear, block_linear, float32_linear
from models.projectors import linear
from models.text.tokeniser import Tokeniser

PUBLISHED_INSTRUCTION = "Transcribe the following:"
LANGUAGES = ("en",)
"""The only language that its card names: a request may say that it is spoken, and the prompt is the same."""
TURN = (
    "{% for message in messages %}{{ '<|im_start|>user\\n' + message['content'] }}"
    "{{ '<|im_end|>\\n<|im_start|>assistant\\n' }}{% endfor %}"
)
"""NeMo's own template for Qwen, which has no system turn."""
STATES_PER_S = SAMPLE_RATE_HZ / HOP_SAMPLES / SUBSAMPLING
ENCODER = {
    "subsampling": "dw_striding",
    "subsampling_factor": SUBSAMPLING,
    "self_attention_model": "rel_pos",
    "att_context_size": [-1, -1],
    "conv_norm_type": "batch_norm",
    "causal_downsampling": False,
}
PREPROCESSOR = {
    "normalize": "per_feature",
    "n_fft": 512,
    "window": "hann",
    "window_size": 0.025,
    "window_stride": 0.01,
    "sample_rate": SAMPLE_RATE_HZ,
    "preemph": 0.97,
    "log": True,
}
"""The values that are known; what a checkpoint does not name has them in NeMo."""


def convert_canary_qwen(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write a Canary-Qwen."""
    config, place, tensors = checkpoint.config, checkpoint.name, checkpoint.tensors
    how, folder = PRECISIONS[conversion.options.precision], conversion.folder
    perception = read_value(config, "perception", place)
    audio = read_value(perception, "encoder", place)
    features = read_value(perception, "preprocessor", place)
    require_known_values(ENCODER, audio, "an encoder", place)
    require_known_values(PREPROCESSOR, features, "features", place)
    connector = str((perception.get("modality_adapter") or {}).get("_target_", "IdentityConnector"))
    if not connector.endswith("IdentityConnector"):
        raise CheckpointError(f"{place} has the modality adapter {connector}; known is IdentityConnector")

    bins, width = read_value(features, "features", place), read_value(audio, "d_model", place)
    weights = tensors.renamed({"perception.encoder.": ""})
    require_encoder(weights, audio, bins, place)
    shape = FastConformerConfig(
        layers=read_value(audio, "n_layers", place),
        heads=read_value(audio, "n_heads", place),
        longest=math.ceil(MAX_AUDIO_S * STATES_PER_S) + 1,
        scale=math.sqrt(width) if audio.get("xscaling", True) else 1.0,
    )
    build_encoder(shape, bins, weights, encoder_linear(conversion.options.precision)).save(folder / "encoder.onnx")
    llm = _read_llm(conversion, checkpoint)
    projector = tensors.renamed({"perception.proj.": ""})
    size = llm.llama.config.embedding_size
    require_shape(projector, "weight", (size, width), place)
    linear.build_projector(projector, how.speech).save(folder / "projector.onnx")
    values = projector_values("linear", conversion, width, 1, size)
    values["boundary_instructions"] = (PUBLISHED_INSTRUCTION, *TRANSCRIPTION_INSTRUCTIONS)
    return conversion.describe(
        encoder=FastConformerSection(
            architecture="fast_conformer",
            precision=speech_precision(conversion.options.precision),
            graph="encoder.onnx",
            mel_bins=bins,
            width=width,
            states_per_s=STATES_PER_S,
        ),
        projector=linear.LinearSection(**values),
        llm=llm.write(conversion.options.precision, folder),
        prompt=_prompt(llm),
        licences={place: read_licence(checkpoint)},
    )


def require_known_values(known: Mapping[str, Any], given: Mapping[str, Any], part: str, place: str) -> None:
    """Raise `CheckpointError` for a value of a part that is another than the known one."""
    for name, value in known.items():
        if given.get(name, value) != value:
            raise CheckpointError(f"{place} has {part} with {name} {given[name]!r}; known is {value!r}")


def require_encoder(tensors: Tensors, audio: dict[str, Any], bins: int, place: str) -> None:
    """Raise `CheckpointError` where a size of the encoder is not the one that its configuration says."""
    width = read_value(audio, "d_model", place)
    channels = tensors.place("pre_encode.conv.0.weight").shape[0]
    require_shape(tensors, "pre_encode.out.weight", (width, channels * -(-bins // SUBSAMPLING)), place)
    if width % read_value(audio, "n_heads", place):
        raise CheckpointError(f"{place} has {audio['n_heads']} heads in its encoder, which do not divide its width of {width}")
    last = read_value(audio, "n_layers", place) - 1
    require_shape(tensors, f"layers.{last}.self_attn.linear_q.weight", (width, width), place)


def encoder_linear(precision: str) -> Linear:
    """Return how the encoder's products are written: in blocks, which stand channels of very different sizes."""
    return float32_linear if precision == "fp32" else block_linear(INT8)


def _read_llm(conversion: Conversion, checkpoint: Checkpoint) -> LanguageModel:
    """Return the LLM with the adapter merged; its tokeniser and shape are the named LLM's."""
    config, place = checkpoint.config, checkpoint.name
    named = conversion.hub.get_descriptions(str(read_value(config, "pretrained_llm", place)))
    adapted = checkpoint.tensors.renamed({"llm.base_model.model.": "", "llm.": "", "embed_tokens.": "model.embed_tokens."})
    template = new_chat_template(TURN, {}, place)
    llm = language_model_of(named, adapted.replaced(".base_layer", ""), {**named.config, **UNTIED}, template, place)
    conversion.hub.forget_checkpoint(named)
    if not config.get("lora"):
        return llm
    adapter = adapted.replaced(".default", "")
    return replace(llm, llama=merge_lora(llm.llama, adapter, lora_scale(config["lora"], place), place, {}))


def _prompt(llm: LanguageModel) -> PromptSection:
    tokeniser = Tokeniser.from_json(llm.tokeniser_json)
    prompt = lay_out(llm.template, llm.ends, tokeniser, f"{INSTRUCTION} {SPEECH}")
    own = {"transcription": tuple(tokeniser.encode(PUBLISHED_INSTRUCTION)), "languages": dict.fromkeys(LANGUAGES, ())}
    return prompt.model_copy(update=own)
