"""Pull a model: get its checkpoint, convert that to a bundle, and put the bundle into the store.

A family of checkpoints is one module of `export.checkpoints` and one line of `FAMILIES`.
"""

import errno
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from export.bundle_parts import (
    CONDENSED_WINDOW,
    MAX_AUDIO_S,
    WHOLE_WINDOW,
    write_adapter,
    write_encoder,
    write_speech_decoder,
)
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
from models.bundle.sections import EncoderSection
from models.projectors.subsample import MAX_FRAMES, read_adapter
from models.protocols import BackendError
from models.registry import import_by_name

FAMILIES = {
    "ultravox": "export.checkpoints.ultravox:convert_ultravox",
    "qwen2_audio": "export.checkpoints.qwen2_audio:convert_qwen2_audio",
    "granite_speech": "export.checkpoints.granite_speech:convert_granite_speech",
    "granite_speech_plus": "export.checkpoints.granite_speech:convert_granite_speech",
    "parakeet_ctc": "export.checkpoints.parakeet:convert_parakeet",
    "qwen3_asr": "export.checkpoints.qwen3_asr:convert_qwen3_asr",
    "salm": "export.checkpoints.canary_qwen:convert_canary_qwen",
    "voxtral": "export.checkpoints.voxtral:convert_voxtral",
}
"""The speech models by the `model_type` of their `config.json`: a function that takes a `Conversion` and a `Checkpoint`."""
ENCODERS = {
    "whisper": "export.checkpoints.whisper:convert_encoder",
    "wav2vec2-bert": "export.checkpoints.w2v_bert:convert_encoder",
    "parakeet_encoder": "export.checkpoints.fast_conformer:convert_encoder",
    "parakeet_ctc": "export.checkpoints.fast_conformer:convert_encoder",
    "parakeet_rnnt": "export.checkpoints.fast_conformer:convert_encoder",
    "parakeet_tdt": "export.checkpoints.fast_conformer:convert_encoder",
}
"""The encoders that an adapter of ours can stand behind, likewise; the function returns the encoder's section."""

NOT_BUILT = {
    "gemma3n": "its audio encoder is not built",
    "voxtral_realtime": "it hears a piece of audio with each token that it writes, which the engine cannot do",
}
"""Why a kind that users know is refused, by its `model_type`."""
MAX_REASON = 200
"""Characters of an error that a message repeats; the log has all of it at the level debug."""
logger = logging.getLogger(__name__)

AnyLanguageModel = LanguageModel | EncoderDecoderModel


def pull_model(
    model: str, options: PullOptions, hub: Hub, store: Store, write_voice: Callable[[Path], None], llm: str | None = None
) -> Bundle:
    """Make the bundle of a checkpoint, or of a Whisper and an LLM; `write_voice` writes the voice detector's graph to a path.

    Raises `CheckpointError`.
    """
    sources = [hub.get(each) for each in (model, llm) if each is not None]
    name = options.name or _default_name([model, *([llm] if llm else [])], options.precision)
    print(f"Converting to {options.precision}: up to half a minute for each GB of weights", file=sys.stderr, flush=True)
    try:
        with store.new(name) as folder:
            write_voice(folder / "voice.onnx")
            conversion = Conversion(folder, name, options, hub)
            manifest = write_bundle(folder, _convert_or_refuse(conversion, *sources)).manifest
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CheckpointError(
                f"There is no space left on the disk of {store.root}: free some, or name another folder with THINBRIDGE_CACHE_DIR"
            ) from None
        raise
    for source in sources:
        hub.forget(source)
    return Bundle(store.require(name).resolve(), manifest)


def _convert_or_refuse(conversion: Conversion, source: Source, llm: Source | None = None) -> BundleDescription:
    """Do as `convert`; where a value of a configuration makes a step fail, raise `CheckpointError` too."""
    try:
        return convert(conversion, source, llm)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # any step can fail, in any way
        name = source.checkpoint.name
        logger.debug("%s cannot be converted", name, exc_info=True)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON]
        raise CheckpointError(f"{name} cannot be converted: its files are not as those of this family are ({reason})") from None


def convert(conversion: Conversion, source: Source, llm: Source | None = None) -> BundleDescription:
    """Write a bundle's files and return its description. Raises `CheckpointError`."""
    checkpoint = source.checkpoint
    if source.gguf is not None:
        raise CheckpointError(
            f"{checkpoint.name} is an LLM in a GGUF file: name the speech model too, as in {_combined(checkpoint)}"
        )
    if conversion.options.adapter is not None:
        if llm is None:
            raise CheckpointError("an adapter needs the LLM that it was trained for: name that by --llm")
        return convert_adapted(conversion, checkpoint, llm, conversion.options.adapter)
    if encoder_kind(checkpoint) == "whisper":
        return convert_whisper(conversion, checkpoint, llm)
    if checkpoint.model_type in ENCODERS and checkpoint.model_type not in FAMILIES:
        raise CheckpointError(
            f"{checkpoint.name} is an encoder ({checkpoint.model_type}), and the text that its own head writes is not served: "
            "train an adapter from it to an LLM, and name both by --adapter and --llm"
        )
    if llm is not None:
        raise CheckpointError(f"{checkpoint.name} is no Whisper, and only a Whisper can be combined with an LLM")
    kind = checkpoint.model_type
    if kind in (*LLM_FAMILIES, *ENCODER_DECODER_FAMILIES):
        raise CheckpointError(f"{checkpoint.name} is an LLM ({kind}): name the speech model too, as in {_combined(checkpoint)}")
    if kind not in FAMILIES:
        known = ", ".join(sorted(["whisper", *FAMILIES]))
        if kind in NOT_BUILT:
            raise CheckpointError(f"{checkpoint.name} is a {kind} and cannot be served: {NOT_BUILT[kind]}; known are {known}")
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
    model = read_llm(llm)
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
    """Write an encoder, an adapter of ours that was trained for both, and the LLM that hears the speech through it."""
    options, folder = conversion.options, conversion.folder
    try:
        trained = read_adapter(adapter)
    except (OSError, BackendError) as error:
        raise CheckpointError(f"{adapter} cannot be used as an adapter ({error})") from None
    encoder, model = convert_encoder(conversion, checkpoint), read_llm(llm)
    widths = {"encoder_width": (encoder.width, checkpoint.name), "embedding_size": (model.embeddings.shape[1], model.name)}
    for value, (width, place) in widths.items():
        if trained.config.get(value) != width:
            raise CheckpointError(f"{adapter} was trained for {value} {trained.config.get(value)}, and {place} has {width}")
    if MAX_AUDIO_S * encoder.states_per_s > MAX_FRAMES * trained.config["reduction"]:
        raise CheckpointError(f"{adapter} makes more than {MAX_FRAMES} frames of {MAX_AUDIO_S:g} s of audio")
    return conversion.describe(
        encoder=encoder,
        projector=write_adapter(adapter, trained, model.embeddings, options.precision, folder),
        llm=model.write(options.precision, folder),
        prompt=model.speech_prompt(),
        licences={
            checkpoint.name: read_licence(checkpoint),
            model.name: read_licence(llm.checkpoint),
            "adapter": "as the data that it was trained on",
        },
    )


def encoder_kind(checkpoint: Checkpoint) -> str:
    """Return the encoder's key in `ENCODERS`, if it is one of those."""
    return "whisper" if checkpoint.is_ctranslate2 else checkpoint.model_type


def convert_encoder(conversion: Conversion, checkpoint: Checkpoint) -> EncoderSection:
    """Write the encoder of a checkpoint into `encoder.onnx`. Raises `CheckpointError`."""
    kind = encoder_kind(checkpoint)
    if kind not in ENCODERS:
        raise CheckpointError(
            f"{checkpoint.name} is of the kind {kind or 'that names none'!r}; encoders that an adapter can stand behind are "
            f"{', '.join(sorted(ENCODERS))}"
        )
    section: EncoderSection = import_by_name(ENCODERS[kind])(conversion, checkpoint)
    return section


def read_llm(source: Source) -> AnyLanguageModel:
    """Read an LLM of any kind that is known. Raises `CheckpointError`."""
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
