"""Published speech LLMs of a Whisper encoder, a projector and an LLM of llama's kind: Ultravox, Qwen2-Audio and Voxtral."""

from dataclasses import dataclass
from typing import Any

from export.bundle_parts import (
    MASKED_SILENCE,
    NO_SILENCE,
    WHOLE_WINDOW,
    HeardSilence,
    write_encoder,
)
from export.checkpoints.chat_template import INSTRUCTION, SPEECH, new_chat_template, read_chat_template
from export.checkpoints.checkpoint import Checkpoint, read_value
from export.checkpoints.conversion import Conversion, read_licence
from export.checkpoints.language_model import UNTIED, LanguageModel, language_model_of, text_tensors
from export.checkpoints.safetensors_file import CheckpointError
from export.checkpoints.whisper import read_encoder
from models.bundle.schema import BundleDescription
from models.bundle.sections import ProjectorSection, PromptSection
from models.encoders.whisper import Arrays
from models.features.log_mel import HOPS_OF_A_FRAME
from models.projectors import linear, two_layers, ultravox, voxtral
from models.text.tokeniser import Tokeniser

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n' }}"
    "{{ message['content'] }}{{ '<|im_end|>\\n<|im_start|>assistant\\n' }}{% endfor %}"
)
MISTRAL = "{% for message in messages %}{{ '<s>[INST]' + message['content'] + '[/INST]' }}{% endfor %}"
VOXTRAL_LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "it", "nl", "pt")
"""Those that Voxtral's card names for transcripts."""
TRANSCRIBE = "[TRANSCRIBE]"
ULTRAVOX_PROJECTOR = "multi_modal_projector."


@dataclass(frozen=True)
class SpeechLlm:
    """The parts of a speech LLM on their way into a bundle; `turn` is what the user's turn holds, with the marks."""

    checkpoint: Checkpoint
    encoder: Arrays
    llm: LanguageModel
    turn: str
    silence: HeardSilence = NO_SILENCE
    pooled: int = 1
    hop_multiple: int = HOPS_OF_A_FRAME

    def write(self, conversion: Conversion, projector: ProjectorSection) -> BundleDescription:
        """Write encoder and LLM; the projector's graph is written already."""
        folder, precision = conversion.folder, conversion.options.precision
        encoder = write_encoder(self.encoder, precision, folder, self.silence, pooled=self.pooled, hop_multiple=self.hop_multiple)
        llm = self.llm.write(precision, folder)
        return conversion.describe(
            encoder=encoder,
            projector=projector,
            llm=llm,
            prompt=self.llm.lay_out(self.turn),
            licences={self.checkpoint.name: read_licence(self.checkpoint)},
        )


def convert_ultravox(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write an Ultravox, whose LLM, and encoder at times, are checkpoints of their own."""
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
    projector = dict(tensors.renamed({ULTRAVOX_PROJECTOR: "", f"model.{ULTRAVOX_PROJECTOR}": ""}))
    width = encoder["encoder/conv1/weight"].shape[0]
    for name in ("ln_pre.weight", "linear_1.weight", "linear_2.weight"):
        if name not in projector:
            raise CheckpointError(f"{checkpoint.name} lacks {ULTRAVOX_PROJECTOR}{name}")
    graph = ultravox.build_projector(projector, width, stacked, conversion.precision.speech)
    size = len(projector["linear_2.weight"])
    section = conversion.save_projector(
        graph, ultravox.UltravoxSection, "ultravox", width, subsampling=stacked, embedding_size=size
    )
    return SpeechLlm(checkpoint, encoder, llm, f"{INSTRUCTION}\n{SPEECH}").write(conversion, section)


def convert_qwen2_audio(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write a Qwen2-Audio."""
    tensors, config = checkpoint.tensors, checkpoint.config
    encoder = read_encoder(tensors.part("audio_tower."), _audio_config(checkpoint), checkpoint.name)
    projector = dict(tensors.part("multi_modal_projector.linear."))
    width = encoder["encoder/conv1/weight"].shape[0]
    graph = linear.build_projector(projector, conversion.precision.speech)
    section = conversion.save_projector(graph, linear.LinearSection, "linear", width, embedding_size=len(projector["weight"]))
    text_config = {"model_type": "qwen2", "rms_norm_eps": 1e-5, **read_value(config, "text_config", checkpoint.name), **UNTIED}
    template = new_chat_template(CHATML, {}, checkpoint.name)
    llm = language_model_of(checkpoint, text_tensors(tensors), text_config, template, checkpoint.name)
    turn = f"Audio 1: <|audio_bos|>{SPEECH}<|audio_eos|>\n{INSTRUCTION}"
    return SpeechLlm(checkpoint, encoder, llm, turn, silence=MASKED_SILENCE, pooled=2, hop_multiple=1).write(conversion, section)


def convert_voxtral(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write a Voxtral, which always hears 30 s."""
    tensors, config = checkpoint.tensors, checkpoint.config
    encoder = read_encoder(tensors.part("audio_tower."), _audio_config(checkpoint), checkpoint.name)
    projector = dict(tensors.part("multi_modal_projector."))
    width = encoder["encoder/conv1/weight"].shape[0]
    stacked = projector["linear_1.weight"].shape[1] // width
    graph = two_layers.build_projector(projector, width, stacked, conversion.precision.speech)
    size = len(projector["linear_2.weight"])
    section = conversion.save_projector(graph, voxtral.VoxtralSection, "voxtral", width, subsampling=stacked, embedding_size=size)
    text_config = {"model_type": "llama", **read_value(config, "text_config", checkpoint.name), **UNTIED}
    template = new_chat_template(MISTRAL, {}, checkpoint.name)
    llm = language_model_of(checkpoint, text_tensors(tensors), text_config, template, checkpoint.name)
    turn = f"[BEGIN_AUDIO]{SPEECH}{INSTRUCTION}"
    description = SpeechLlm(checkpoint, encoder, llm, turn, silence=WHOLE_WINDOW).write(conversion, section)
    prompt = transcribe_without_words(description.require_prompt(), llm.tokeniser, checkpoint.name)
    return description.model_copy(update={"prompt": prompt})


def transcribe_without_words(prompt: PromptSection, tokeniser: Tokeniser, place: str) -> PromptSection:
    """Return Voxtral's prompt with its mode for transcripts: a token behind the turn in place of an instruction.

    The language, if it is named, stands before that token (`encode_transcription` of mistral-common). Raises `CheckpointError`.
    """
    if TRANSCRIBE not in tokeniser.special_tokens:
        raise CheckpointError(f"{place} has a tokeniser without {TRANSCRIBE}, which Voxtral needs")
    languages = {code: tuple(tokeniser.encode_after(prompt.suffix, f"lang:{code}")) for code in VOXTRAL_LANGUAGES}
    mode = {
        "transcription": (),
        "languages": {code: ids[len(prompt.suffix) :] for code, ids in languages.items()},
        "transcription_end": (tokeniser.special_tokens[TRANSCRIBE],),
    }
    return prompt.model_copy(update=mode)


def _audio_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the encoder's configuration by Whisper's names; Voxtral has names of its own."""
    config = dict(read_value(checkpoint.config, "audio_config", checkpoint.name))
    own = {
        "d_model": "hidden_size",
        "encoder_layers": "num_hidden_layers",
        "encoder_attention_heads": "num_attention_heads",
        "encoder_ffn_dim": "intermediate_size",
    }
    return {**config, **{name: config[other] for name, other in own.items() if name not in config and other in config}}
