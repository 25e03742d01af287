"""Pull a model: get its checkpoint, convert that to a bundle, and put the bundle into the store.

A family of checkpoints is one module of `export.checkpoints` and one line of `FAMILIES`.
"""

import errno
from collections.abc import Callable
from pathlib import Path

from export.bundle_parts import write_encoder, write_speech_decoder
from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.conversion import Conversion, PullOptions, read_licence
from export.checkpoints.hub import Hub, Source
from export.checkpoints.language_model import read_language_model
from export.checkpoints.llama import FAMILIES as LLM_FAMILIES
from export.checkpoints.safetensors_file import CheckpointError
from export.checkpoints.whisper import read_whisper
from export.store import Store, model_name
from models.bundle.io import Bundle, write_bundle
from models.bundle.schema import BundleDescription
from models.registry import import_by_name

FAMILIES = {
    "ultravox": "export.checkpoints.speech_llms:convert_ultravox",
    "qwen2_audio": "export.checkpoints.speech_llms:convert_qwen2_audio",
    "granite_speech": "export.checkpoints.granite_speech:convert_granite_speech",
    "granite_speech_plus": "export.checkpoints.granite_speech:convert_granite_speech",
    "qwen3_asr": "export.checkpoints.qwen3_asr:convert_qwen3_asr",
    "salm": "export.checkpoints.canary_qwen:convert_canary_qwen",
    "voxtral": "export.checkpoints.speech_llms:convert_voxtral",
}
"""The speech LLMs by the `model_type` of their `config.json`: a function that takes a `Conversion` and a `Checkpoint`."""


def pull_model(
    model: str, options: PullOptions, hub: Hub, store: Store, write_voice: Callable[[Path], None], llm: str | None = None
) -> Bundle:
    """Make the bundle of a checkpoint, or of a Whisper and an LLM; `write_voice` writes the voice detector's graph to a path.

    Raises `CheckpointError`.
    """
    sources = [hub.get(each) for each in (model, llm) if each is not None]
    name = options.name or _default_name([model, *([llm] if llm else [])], options.precision)
    try:
        with store.new(name) as folder:
            write_voice(folder / "voice.onnx")
            conversion = Conversion(folder, name, options, hub)
            manifest = write_bundle(folder, convert(conversion, *sources)).manifest
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CheckpointError(f"There is no space left on the disk of {store.root}") from None
        raise
    for source in sources:
        hub.forget(source)
    return Bundle(store.require(name).resolve(), manifest)


def convert(conversion: Conversion, source: Source, llm: Source | None = None) -> BundleDescription:
    """Write a bundle's files and return its description. Raises `CheckpointError`."""
    checkpoint = source.checkpoint
    if source.gguf is not None:
        raise CheckpointError(
            f"{checkpoint.name} is an LLM in a GGUF file: name the speech model too, as in {_combined(checkpoint)}"
        )
    if checkpoint.is_ctranslate2 or checkpoint.model_type == "whisper":
        return convert_whisper(conversion, checkpoint, llm)
    if llm is not None:
        raise CheckpointError(f"{checkpoint.name} is no Whisper, and only a Whisper can be combined with an LLM")
    kind = checkpoint.model_type
    if kind in LLM_FAMILIES:
        raise CheckpointError(f"{checkpoint.name} is an LLM ({kind}): name the speech model too, as in {_combined(checkpoint)}")
    if kind not in FAMILIES:
        known = ", ".join(sorted(["whisper", *FAMILIES]))
        raise CheckpointError(f"{checkpoint.name} is of the kind {kind or 'that names none'!r}; known are {known}")
    description: BundleDescription = import_by_name(FAMILIES[kind])(conversion, checkpoint)
    return description


def convert_whisper(conversion: Conversion, checkpoint: Checkpoint, llm: Source | None) -> BundleDescription:
    """Write a Whisper, whose decoder writes transcripts by itself, and the LLM that answers about them."""
    options, folder = conversion.options, conversion.folder
    weights = read_whisper(checkpoint)
    encoder = write_encoder(weights.encoder, options.precision, folder, options.floor_s, 0.0)
    decoder = write_speech_decoder(weights.decoder, weights.tokens, checkpoint.tokeniser_file, options.precision, folder)
    licences = {checkpoint.name: read_licence(checkpoint)}
    if llm is None:
        return conversion.describe(encoder=encoder, speech_decoder=decoder, licences=licences)
    model = read_language_model(llm)
    licences[model.name] = read_licence(llm.checkpoint)
    return conversion.describe(
        encoder=encoder,
        speech_decoder=decoder,
        llm=model.write(options.precision, folder),
        prompt=model.transcript_prompt(folder),
        bridge="transcript",
        licences=licences,
    )


def _combined(llm: Checkpoint) -> str:
    return f"`thinbridge pull openai/whisper-base --llm {llm.name}`"


def _default_name(names: list[str], precision: str) -> str:
    joined = "-".join(map(model_name, names))[:90]
    return joined if precision == "int8" else f"{joined}-{precision}"
