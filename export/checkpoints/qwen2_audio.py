"""Published checkpoints of Qwen2-Audio."""

from export.bundle_parts import MASKED_SILENCE
from export.checkpoints.chat_template import INSTRUCTION, SPEECH, new_chat_template
from export.checkpoints.checkpoint import Checkpoint, read_value
from export.checkpoints.conversion import Conversion
from export.checkpoints.language_model import UNTIED, language_model_of, text_tensors
from export.checkpoints.whisper_llm import WhisperLlm, read_audio_tower
from models.bundle.schema import BundleDescription
from models.projectors import linear

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n' }}"
    "{{ message['content'] }}{{ '<|im_end|>\\n<|im_start|>assistant\\n' }}{% endfor %}"
)


def convert_qwen2_audio(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write a Qwen2-Audio."""
    tensors, config = checkpoint.tensors, checkpoint.config
    encoder = read_audio_tower(checkpoint)
    projector = dict(tensors.part("multi_modal_projector.linear."))
    width = encoder["encoder/conv1/weight"].shape[0]
    graph = linear.build_projector(projector, conversion.precision.speech)
    section = conversion.save_projector(graph, linear.LinearSection, "linear", width, embedding_size=len(projector["weight"]))
    text_config = {"model_type": "qwen2", "rms_norm_eps": 1e-5, **read_value(config, "text_config", checkpoint.name), **UNTIED}
    template = new_chat_template(CHATML, {}, checkpoint.name)
    llm = language_model_of(checkpoint, text_tensors(tensors), text_config, template, checkpoint.name)
    turn = f"Audio 1: <|audio_bos|>{SPEECH}<|audio_eos|>\n{INSTRUCTION}"
    return WhisperLlm(checkpoint, encoder, llm, turn, silence=MASKED_SILENCE, pooled=2, hop_multiple=1).write(conversion, section)
