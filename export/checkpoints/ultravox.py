"""Published checkpoints of Ultravox, whose LLM, and encoder at times, are checkpoints of their own."""

from export.checkpoints.chat_template import INSTRUCTION, SPEECH, read_chat_template
from export.checkpoints.checkpoint import Checkpoint, read_value
from export.checkpoints.conversion import Conversion
from export.checkpoints.language_model import language_model_of
from export.checkpoints.safetensors_file import CheckpointError
from export.checkpoints.whisper import read_encoder
from export.checkpoints.whisper_llm import WhisperLlm
from models.bundle.schema import BundleDescription
from models.projectors import ultravox

PROJECTOR = "multi_modal_projector."


def convert_ultravox(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write an Ultravox."""
    config, tensors = checkpoint.config, checkpoint.tensors
    if config.get("num_projector_layers"):
        raise CheckpointError(f"{checkpoint.name} has an Ultravox projector with layers; known is the one without")
    if config.get("projector_act", "swiglu") != "swiglu":
        raise CheckpointError(f"{checkpoint.name} has the projector's activation {config['projector_act']!r}; known is swiglu")
    if config.get("audio_latency_block_size"):
        raise CheckpointError(f"{checkpoint.name} has an encoder with blocks of latency; known is the one without")
    stacked = int(read_value(config, "stack_factor", checkpoint.name))
    audio_config = config.get("audio_config") or {}
    audio = tensors.renamed({"audio_tower.": "", "model.audio_tower.": ""})
    if not audio and not config.get("audio_model_id"):
        tensors.place("audio_tower.conv1.weight")
    if not audio or "d_model" not in audio_config:
        whisper = conversion.hub.get(read_value(config, "audio_model_id", checkpoint.name)).checkpoint
        audio = audio or whisper.tensors.renamed({"model.encoder.": "", "encoder.": ""})
        audio_config = {**whisper.config, **audio_config}
    encoder = read_encoder(audio, audio_config, checkpoint.name)
    text = tensors.renamed({"language_model.": "", "model.language_model.": ""})
    source = checkpoint if text else conversion.hub.get(read_value(config, "text_model_id", checkpoint.name)).checkpoint
    text_config = {**({} if text else source.config), **(config.get("text_config") or {})}
    tokeniser = checkpoint if checkpoint.has("tokenizer.json") else source
    llm = language_model_of(tokeniser, text or source.tensors, text_config, read_chat_template(tokeniser), checkpoint.name)
    projector = dict(tensors.renamed({PROJECTOR: "", f"model.{PROJECTOR}": ""}))
    width = encoder["encoder/conv1/weight"].shape[0]
    for name in ("ln_pre.weight", "linear_1.weight", "linear_2.weight"):
        if name not in projector:
            raise CheckpointError(f"{checkpoint.name} lacks {PROJECTOR}{name}")
    graph = ultravox.build_projector(projector, width, stacked, conversion.precision.speech)
    size = len(projector["linear_2.weight"])
    section = conversion.save_projector(
        graph, ultravox.UltravoxSection, "ultravox", width, subsampling=stacked, embedding_size=size
    )
    return WhisperLlm(checkpoint, encoder, llm, f"{INSTRUCTION}\n{SPEECH}").write(conversion, section)
