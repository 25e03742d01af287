"""Pull a model: get its checkpoint, convert that to a bundle, and put the bundle into the store.

A family of checkpoints is one module of `export.checkpoints` and one line of `FAMILIES`.
"""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from export.bundle_parts import CONDENSED_WINDOW, NO_SILENCE, WHOLE_WINDOW, write_adapter, write_encoder, write_speech_decoder
from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.conversion import Conversion, PullOptions, read_licence
from export.checkpoints.hub import Hub, Source
from export.checkpoints.language_model import LanguageModel, read_language_model
from export.checkpoints.llama import FAMILIES as LLM_FAMILIES
from export.checkpoints.safetensors_file import CheckpointError
from export.checkpoints.t5 import FAMILIES as ENCODER_DECODER_FAMILIES
from export.checkpoints.t5 import EncoderDecoderModel, read_encoder_decoder
from export.checkpoints.whisper import read_whisper
from export.store import Store, model_name
from models.bundle.io import Bundle, write_bundle
from models.bundle.schema import BundleDescription
from models.projectors.subsample_ctc import read_adapter
from models.protocols import BackendError
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
            raise CheckpointError(
                f"There is no space left on the disk of {store.root}: free some, or name another folder with THINBRIDGE_CACHE_DIR"
            ) from None
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
        if conversion.options.adapter is None:
            return convert_whisper(conversion, checkpoint, llm)
        if llm is None:
            raise CheckpointError("an adapter needs the LLM that it was trained for: name that by --llm")
        return convert_adapted(conversion, checkpoint, llm, conversion.options.adapter)
    if llm is not None:
        raise CheckpointError(f"{checkpoint.name} is no Whisper, and only a Whisper can be combined with an LLM")
    kind = checkpoint.model_type
    if kind in (*LLM_FAMILIES, *ENCODER_DECODER_FAMILIES):
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
    silence = CONDENSED_WINDOW if options.condenses_silence else WHOLE_WINDOW
    encoder = write_encoder(weights.encoder, options.precision, folder, silence)
    decoder = write_speech_decoder(weights.decoder, weights.tokens, checkpoint.tokeniser_file, options.precision, folder, encoder)
    licences = {checkpoint.name: read_licence(checkpoint)}
    if llm is None:
        return conversion.describe(encoder=encoder, speech_decoder=decoder, licences=licences)
    model = _read_llm(llm)
    licences[model.name] = read_licence(llm.checkpoint)
    return conversion.describe(
        encoder=encoder,
        speech_decoder=decoder,
        llm=model.write(options.precision, folder),
        prompt=model.transcript_prompt(),
        bridge="transcript",
        licences=licences,
    )


def convert_adapted(conversion: Conversion, checkpoint: Checkpoint, llm: Source, adapter: Path) -> BundleDescription:
    """Write a Whisper encoder, an adapter of ours that was trained for both, and the LLM that hears the speech through it."""
    options, folder = conversion.options, conversion.folder
    try:
        shutil.copyfile(adapter, folder / "adapter.safetensors")
        trained = read_adapter(folder / "adapter.safetensors")
    except (OSError, BackendError) as error:
        raise CheckpointError(f"{adapter} cannot be used as an adapter ({error})") from None
    weights, model = read_whisper(checkpoint), _read_llm(llm)
    encoder = write_encoder(weights.encoder, options.precision, folder, NO_SILENCE)
    widths = {"encoder_width": (encoder.width, checkpoint.name), "embedding_size": (model.embeddings.shape[1], model.name)}
    for value, (width, place) in widths.items():
        if trained.config.get(value) != width:
            raise CheckpointError(f"{adapter} was trained for {value} {trained.config.get(value)}, and {place} has {width}")
    return conversion.describe(
        encoder=encoder,
        projector=write_adapter(trained, model.embeddings, options.precision, folder),
        llm=model.write(options.precision, folder),
        prompt=model.speech_prompt(),
        licences={
            checkpoint.name: read_licence(checkpoint),
            model.name: read_licence(llm.checkpoint),
            "adapter": "as the data that it was trained on",
        },
    )


def _read_llm(source: Source) -> LanguageModel | EncoderDecoderModel:
    if source.gguf is not None:
        return read_language_model(source)
    kind, known = source.checkpoint.model_type, (*LLM_FAMILIES, *ENCODER_DECODER_FAMILIES)
    if kind not in known:
        raise CheckpointError(f"{source.checkpoint.name} has an LLM of the kind {kind!r}; known are {', '.join(sorted(known))}")
    return read_encoder_decoder(source.checkpoint) if kind in ENCODER_DECODER_FAMILIES else read_language_model(source)


def _combined(llm: Checkpoint) -> str:
    return f"`thinbridge pull openai/whisper-base --llm {llm.name}`"


def _default_name(names: list[str], precision: str) -> str:
    joined = "-".join(map(model_name, names))[:90]
    return joined if precision == "int8" else f"{joined}-{precision}"
