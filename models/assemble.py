"""Load all models of a bundle, for an engine or an evaluation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from models.bundle.io import Bundle
from models.bundle.sections import (
    EncoderDecoderSection,
    EncoderSection,
    LlmSection,
    ModelSection,
    Shapes,
    SpeechDecoderSection,
    dimension,
)
from models.chain import TRANSCRIPTION_INSTRUCTION, Models, SilencePadding
from models.encoders.windows import SpeechWindow
from models.projectors.ctc_head import CtcHeadSection
from models.projectors.no_projector import NoProjector
from models.projectors.searched import SearchedProjector
from models.projectors.subsample import TrainedAdapter, read_adapter
from models.protocols import (
    LLM,
    Encoder,
    Features,
    Projector,
    SpeechDecoder,
)
from models.registry import FEATURES, VADS, look_up
from models.runtimes.onnx.decoder import OnnxEncoderDecoder, OnnxLLM, OnnxMemoryDecoder
from models.runtimes.onnx.encoder import OnnxEncoder
from models.runtimes.onnx.projector import OnnxCtcHead, OnnxDraftingProjector, OnnxFrameProjector, OnnxProjector
from models.speech_decoders.speech_model import SpeechModel
from models.text.tokeniser import PromptTemplate, Tokeniser
from models.text.transcript_label import TranscriptLabel
from models.text.word_times import WordTimer

RATED_S = 2
"""The audio by which an encoder's rate is measured, a whole number of every front end's frames."""


def load_models(bundle: Bundle, slots: int, threads: int) -> Models:
    """Load a verified bundle's models on the CPU; 0 threads means one per core.

    Raises `BackendError`, and `BundleError` where a declared value is not that of the files.
    """
    section = bundle.manifest.encoder
    encoder = OnnxEncoder(bundle.path(section.graph), threads)
    _require_graph(bundle, section, "encoder", encoder.shapes)
    llm = _load_llm(bundle, slots, threads)
    projector = _load_projector(bundle, threads)
    if isinstance(llm, OnnxLLM) and bundle.manifest.projector and (search := bundle.manifest.projector.search):
        projector = SearchedProjector(projector, search, llm.with_slots(search.hypotheses))
    models = chain_models(bundle, encoder, projector, llm, load_speech_decoder(bundle, slots, threads))
    _require_rates(bundle, models)
    return replace(models, utterances_at_once=slots, interrupt_encoder=encoder.interrupt)


def _require_graph(bundle: Bundle, section: ModelSection, place: str, shapes: Shapes) -> None:
    bundle.require_values(section, place, section.graph, section.graph_values(shapes))


def _load_llm(bundle: Bundle, slots: int, threads: int) -> LLM | None:
    section = bundle.manifest.llm
    if section is None:
        return None
    if not isinstance(section, EncoderDecoderSection):
        llm = OnnxLLM(bundle.path(section.graph), bundle.path(section.embedding), slots=slots, threads=threads)
        _require_graph(bundle, section, "llm", llm.shapes)
        return llm
    reader = OnnxEncoderDecoder(
        *(bundle.path(name) for name in (section.graph, section.memory_graph, section.embedding)),
        max_states=section.max_states,
        start_token=section.start_token,
        slots=slots,
        threads=threads,
    )
    _require_graph(bundle, section, "llm", reader.shapes)
    bundle.require_values(section, "llm", section.memory_graph, section.memory_values(reader.memory_shapes))
    return reader


def _load_projector(bundle: Bundle, threads: int) -> Projector:
    manifest, section = bundle.manifest, bundle.manifest.projector
    if section is None:
        return NoProjector()
    graph = bundle.path(section.graph)
    projector: OnnxFrameProjector | OnnxProjector | OnnxCtcHead
    if section.writes:
        projector = OnnxCtcHead(graph, threads)
    elif not section.drafts:
        projector = OnnxFrameProjector(graph, threads)
    elif section.weights is None:
        projector = OnnxDraftingProjector(graph, threads)
    else:
        trained = read_trained(bundle)
        embeds = manifest.llm is not None and manifest.bridge == "frames"
        table = np.load(bundle.path(manifest.require_llm().embedding), mmap_mode="r") if embeds else None
        projector = OnnxProjector(graph, table, trained.boundary_before, trained.boundary_after, threads)
    _require_graph(bundle, section, "projector", projector.shapes)
    return projector


def load_speech_decoder(
    bundle: Bundle, slots: int, threads: int, open_decoder: Callable[..., OnnxMemoryDecoder] = OnnxMemoryDecoder
) -> SpeechDecoder | None:
    """Load the bundle's speech decoder, if it has one, on the CPU. Raises as `load_models` does.

    `open_decoder` takes what `OnnxMemoryDecoder` takes.
    """
    section = bundle.manifest.speech_decoder
    if section is None:
        return None
    files = (bundle.path(name) for name in (section.graph, section.memory_graph, section.embedding))
    decoder = open_decoder(*files, max_states=section.max_states, slots=slots, threads=threads)
    _require_graph(bundle, section, "speech_decoder", decoder.shapes)
    bundle.require_values(section, "speech_decoder", section.memory_graph, section.memory_values(decoder.memory_shapes))
    width = {"width": dimension(decoder.memory_shapes, "states", -1)}
    bundle.require_values(bundle.manifest.encoder, "encoder", section.memory_graph, width)
    return decoder


def draft_table_path(bundle: Bundle) -> Path:
    """Return the file of the table that the projector's frames are scored against, by default the LLM's embeddings."""
    return bundle.path(bundle.manifest.require_projector().table or bundle.manifest.require_llm().embedding)


def read_trained(bundle: Bundle) -> TrainedAdapter:
    """Read the projector's trained file. Raises `BackendError`; `BundleError` where a declared value is not the trained one."""
    section = bundle.manifest.require_projector()
    trained = read_adapter(bundle.path(section.require_weights()))
    bundle.require_values(section, "projector", section.require_weights(), trained.values)
    return trained


def chain_models(
    bundle: Bundle, encoder: Encoder, projector: Projector, llm: LLM | None, speech_decoder: SpeechDecoder | None = None
) -> Models:
    """Chain a bundle's models, on whatever device each runs; all other parts run on the CPU.

    The front end is the one that the encoder's family declares. numpy's linear algebra is left one thread in this process: its
    idle threads spin and take a core from the models. Raises `BundleError` where a declared value is not that of the files.
    """
    threadpool_limits(1, "blas")
    manifest = bundle.manifest
    features: Features = look_up(FEATURES, manifest.encoder.features)(**manifest.encoder.feature_options())
    bundle.require_values(manifest, "", f"the front end {manifest.encoder.features}", {"sample_rate_hz": features.sample_rate_hz})
    voice = look_up(VADS, manifest.voice.architecture)(bundle.path(manifest.voice.graph), manifest.voice.window_samples)
    bundle.require_values(manifest.voice, "voice", manifest.voice.graph, voice.graph_values)
    instructions = manifest.transcription_instructions
    subsampling = manifest.projector.frame_states if manifest.projector else 1
    frame_s = subsampling / manifest.encoder.states_per_s
    speech = None
    if (section := manifest.speech_decoder) and speech_decoder is not None:
        speech = SpeechModel(speech_decoder, _open_tokeniser(bundle, section, "speech_decoder"), section.tokens)
    tokeniser, template = _open_text(bundle, speech)
    pads = manifest.encoder.floor_s or manifest.encoder.silence_behind_s
    return Models(
        features=features,
        encoder=encoder,
        projector=projector,
        llm=llm,
        tokeniser=tokeniser,
        template=template,
        voice=voice,
        word_timer=_time_words(bundle, tokeniser, speech, frame_s),
        boundary_instructions=instructions,
        frame_s=frame_s,
        sample_rate_hz=manifest.sample_rate_hz,
        transcription_instruction=instructions[0] if instructions else TRANSCRIPTION_INSTRUCTION,
        speech=speech,
        label=None if manifest.transcripts is None else TranscriptLabel(**manifest.transcripts.model_dump()),
        translation_instructions=() if section is None else section.translation_instructions,
        draft_vocabulary=manifest.projector.vocabulary if manifest.projector else "llm",
        bridge=manifest.bridge,
        padding=SilencePadding(
            manifest.encoder.floor_s,
            manifest.encoder.silence_behind_s,
            manifest.max_audio_s,
            manifest.sample_rate_hz,
            subsampling,
            frame_s,
            projects_padding=manifest.projector is not None and manifest.projector.reads_padding,
        )
        if pads
        else None,
        window=_window(manifest.encoder, features, frame_s),
    )


def _window(encoder: EncoderSection, features: Features, frame_s: float) -> SpeechWindow | None:
    if encoder.window_s is None:
        return None
    return SpeechWindow(round(encoder.window_s * features.frames_per_s), round(encoder.window_s / frame_s))


def _open_text(bundle: Bundle, speech: SpeechModel | None) -> tuple[Tokeniser, PromptTemplate]:
    """Return the LLM's tokeniser and prompt; without an LLM the speech decoder's or the CTC head's, and an empty prompt."""
    manifest = bundle.manifest
    if manifest.llm is not None and manifest.prompt is not None:
        return _open_tokeniser(bundle, manifest.llm, "llm"), PromptTemplate.from_json(manifest.prompt.model_dump())
    if isinstance(head := manifest.projector, CtcHeadSection):
        languages = dict.fromkeys(head.languages, ())
        return _open_tokeniser(bundle, head, "projector"), PromptTemplate((), (), (), (), languages=languages)
    if speech is None:
        raise ValueError("the bundle has nothing that writes text")
    return speech.tokeniser, PromptTemplate((), (), (), (speech.tokens.end,))


def _time_words(bundle: Bundle, tokeniser: Tokeniser, speech: SpeechModel | None, frame_s: float) -> WordTimer | None:
    """Return the timer of words in the draft's tokens; None without a draft."""
    manifest = bundle.manifest
    if manifest.projector is None or not manifest.projector.drafts:
        return None
    if isinstance(manifest.projector, CtcHeadSection):
        return WordTimer(tokeniser, manifest.projector.vocabulary_size, manifest.sample_rate_hz, frame_s)
    if manifest.projector.vocabulary == "llm" or speech is None:
        return WordTimer(tokeniser, manifest.require_llm().vocabulary_size, manifest.sample_rate_hz, frame_s)
    return WordTimer(speech.tokeniser, speech.decoder.vocabulary_size, manifest.sample_rate_hz, frame_s)


def _open_tokeniser(bundle: Bundle, section: LlmSection | SpeechDecoderSection | CtcHeadSection, place: str) -> Tokeniser:
    """Return the tokeniser of a part that writes text, whose logits must be as many as its tokens at least."""
    tokeniser = Tokeniser.from_file(bundle.path(section.tokeniser))
    if tokeniser.vocabulary_size > section.vocabulary_size:
        bundle.require_values(section, place, section.tokeniser, {"vocabulary_size": tokeniser.vocabulary_size})
    return tokeniser


def _require_rates(bundle: Bundle, models: Models) -> None:
    """Encode some silence, and compare the encoder's rate and the projector's with the declared ones."""
    manifest = bundle.manifest
    silence = models.features(np.zeros(RATED_S * models.sample_rate_hz, np.float32))
    (states,) = models.encoder.encode([silence])
    own = states[: len(states) - manifest.encoder.added_states]
    counted = len(own)
    # A front end of whole windows leaves out one state.
    counted += counted + 1 == manifest.encoder.states_per_s * RATED_S
    rate = {"states_per_s": counted / RATED_S}
    bundle.require_values(manifest.encoder, "encoder", manifest.encoder.graph, rate)
    if (section := manifest.projector) and section.drafts:
        (output,) = models.projector.project([own])
        frames = max(1, len(output.require_draft().blank_probability))
        bundle.require_values(section, "projector", section.graph, {"frame_states": -(-len(own) // frames)})
