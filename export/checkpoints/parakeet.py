"""Parakeet with its CTC head, as transformers saves it, as a model of its own."""

from export.bundle_parts import TRANSCRIPTION_INSTRUCTIONS, speech_precision
from export.checkpoints.checkpoint import Checkpoint, read_value, require_shape
from export.checkpoints.conversion import Conversion, read_languages, read_licence
from export.checkpoints.fast_conformer import convert_encoder
from export.checkpoints.safetensors_file import CheckpointError
from models.bundle.schema import BundleDescription
from models.projectors.ctc_head import CtcHeadSection, build_head


def convert_parakeet(conversion: Conversion, checkpoint: Checkpoint) -> BundleDescription:
    """Write a Parakeet whose CTC head writes the transcripts. Raises `CheckpointError`."""
    config, place, folder = checkpoint.config, checkpoint.name, conversion.folder
    labels = read_value(config, "vocab_size", place)
    width = read_value(read_value(config, "encoder_config", place), "hidden_size", place)
    head = checkpoint.tensors
    require_shape(head, "ctc_head.weight", (labels, width, 1), place)
    if read_value(config, "pad_token_id", place) != labels - 1:
        raise CheckpointError(f"{place} has the blank {config['pad_token_id']} of {labels} labels; known is the last one")
    tokeniser = checkpoint.open_tokeniser()
    if tokeniser.vocabulary_size > labels:
        raise CheckpointError(f"{place} has a tokeniser of {tokeniser.vocabulary_size} tokens, and a head for {labels} labels")
    encoder = convert_encoder(conversion, checkpoint)
    graph = build_head(head["ctc_head.weight"][:, :, 0], head["ctc_head.bias"], conversion.block_linear)
    graph.save(folder / "ctc_head.onnx")
    (folder / "tokenizer.json").write_text(checkpoint.tokeniser_json, encoding="utf-8")
    languages = read_languages(checkpoint)
    return conversion.describe(
        encoder=encoder,
        projector=CtcHeadSection(
            architecture="ctc_head",
            precision=speech_precision(conversion.options.precision),
            graph="ctc_head.onnx",
            tokeniser="tokenizer.json",
            encoder_width=encoder.width,
            subsampling=1,
            vocabulary_size=labels,
            boundary_instructions=TRANSCRIPTION_INSTRUCTIONS,
            languages=languages if len(languages) == 1 else (),
        ),
        licences={place: read_licence(checkpoint)},
    )
