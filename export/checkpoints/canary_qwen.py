"""Canary-Qwen as NeMo writes it (`SALM`): a FastConformer, a linear layer, and a Qwen3 with a LoRA adapter, which is merged.

The tokeniser and the LLM's shape are those of the LLM that the checkpoint names, of which no weights are read.
"""

from dataclasses import replace

from export.bundle_parts import TRANSCRIPTION_INSTRUCTIONS
from export.checkpoints.chat_template import INSTRUCTION, SPEECH, new_chat_template
from export.checkpoints.checkpoint import Checkpoint, read_layers, read_value, require_known_values, require_shape
from export.checkpoints.conversion import Conversion, read_licence
from export.checkpoints.fast_conformer import write_encoder
from export.checkpoints.language_model import UNTIED, LanguageModel, language_model_of
from export.checkpoints.lora import lora_scale, merge_lora
from export.checkpoints.nemo import NEMO_ENCODER, NEMO_FEATURES
from export.checkpoints.safetensors_file import CheckpointError
from models.bundle.schema import BundleDescription
from models.projectors import linear

PUBLISHED_INSTRUCTION = "Transcribe the following:"
LANGUAGES = ("en",)
"""The only language that its card names: a request may say that it is spoken, and the prompt is the same."""
TURN = (
    "{% for message in messages %}{{ '<|im_start|>user\\n' + message['content'] }}"
    "{{ '<|im_end|>\\n<|im_start|>assistant\\n' }}{% endfor %}"
)
"""NeMo's own template for Qwen, which has no system turn."""


def convert_canary_qwen(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write a Canary-Qwen."""
    config, place, tensors = checkpoint.config, checkpoint.name, checkpoint.tensors
    perception = read_value(config, "perception", place)
    audio = read_value(perception, "encoder", place)
    features = read_value(perception, "preprocessor", place)
    require_known_values(NEMO_ENCODER, audio, "an encoder", place)
    require_known_values(NEMO_FEATURES, features, "features", place)
    connector = str((perception.get("modality_adapter") or {}).get("_target_", "IdentityConnector"))
    if not connector.endswith("IdentityConnector"):
        raise CheckpointError(f"{place} has the modality adapter {connector}; known is IdentityConnector")

    bins, width = read_value(features, "features", place), read_value(audio, "d_model", place)
    encoder_tensors = tensors.renamed({"perception.encoder.": ""})
    encoder = write_encoder(
        conversion,
        encoder_tensors,
        place,
        bins=bins,
        width=width,
        layers=read_layers(audio, "n_layers", encoder_tensors, "layers.", place),
        heads=read_value(audio, "n_heads", place),
        scales=audio.get("xscaling", True),
    )
    llm = _read_llm(conversion, checkpoint)
    projector = tensors.renamed({"perception.proj.": ""})
    size = llm.llama.config.embedding_size
    require_shape(projector, "weight", (size, width), place)
    section = conversion.save_projector(
        linear.build_projector(projector, conversion.precision.speech),
        linear.LinearSection,
        "linear",
        width,
        embedding_size=size,
        boundary_instructions=(PUBLISHED_INSTRUCTION, *TRANSCRIPTION_INSTRUCTIONS),
    )
    instruction = tuple(llm.tokeniser.encode(PUBLISHED_INSTRUCTION))
    published = {"transcription": instruction, "languages": dict.fromkeys(LANGUAGES, ())}
    return conversion.describe(
        encoder=encoder,
        projector=section,
        llm=llm.write(conversion.options.precision, conversion.folder),
        prompt=llm.lay_out(f"{INSTRUCTION} {SPEECH}").model_copy(update=published),
        licences={place: read_licence(checkpoint)},
    )


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
