"""Published checkpoints of Voxtral, which always hears 30 s."""

from export.bundle_parts import WHOLE_WINDOW
from export.checkpoints.chat_template import INSTRUCTION, SPEECH, new_chat_template
from export.checkpoints.checkpoint import Checkpoint, read_value
from export.checkpoints.conversion import Conversion
from export.checkpoints.language_model import UNTIED, language_model_of, text_tensors
from export.checkpoints.safetensors_file import CheckpointError
from export.checkpoints.whisper_llm import WhisperLlm, read_audio_tower
from models.bundle.schema import BundleDescription
from models.bundle.sections import PromptSection
from models.projectors import two_layers, voxtral
from models.text.tokeniser import Tokeniser

MISTRAL = "{% for message in messages %}{{ '<s>[INST]' + message['content'] + '[/INST]' }}{% endfor %}"
LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "it", "nl", "pt")
"""Those that Voxtral's card names for transcripts."""
TRANSCRIBE = "[TRANSCRIBE]"


def convert_voxtral(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write a Voxtral."""
    tensors, config = checkpoint.tensors, checkpoint.config
    encoder = read_audio_tower(checkpoint)
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
    description = WhisperLlm(checkpoint, encoder, llm, turn, silence=WHOLE_WINDOW).write(conversion, section)
    prompt = transcribe_without_words(description.require_prompt(), llm.tokeniser, checkpoint.name)
    return description.model_copy(update={"prompt": prompt})


def transcribe_without_words(prompt: PromptSection, tokeniser: Tokeniser, place: str) -> PromptSection:
    """Return Voxtral's prompt with its mode for transcripts: a token behind the turn in place of an instruction.

    The language, if it is named, stands before that token (`encode_transcription` of mistral-common). Raises `CheckpointError`.
    """
    if TRANSCRIBE not in tokeniser.special_tokens:
        raise CheckpointError(f"{place} has a tokeniser without {TRANSCRIBE}, which Voxtral needs")
    languages = {code: tuple(tokeniser.encode_after(prompt.suffix, f"lang:{code}")) for code in LANGUAGES}
    mode = {
        "transcription": (),
        "languages": {code: ids[len(prompt.suffix) :] for code, ids in languages.items()},
        "transcription_end": (tokeniser.special_tokens[TRANSCRIBE],),
    }
    return prompt.model_copy(update=mode)
