"""A bundle of random models that are tiny and whole: it hears, and answers nonsense that depends on every sample.

Its plans for the simulated GPU are written from the same weights.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from export.precisions import PRECISIONS
from export.tensorrt_parts import Part, adapter_part, llm_part
from export.tensorrt_profiles import Limits, speech_encoder_profiles
from export.tensorrt_speech import build_by_head_encoder
from models.bundle.io import Bundle, open_bundle, write_bundle
from models.bundle.schema import BundleDescription
from models.bundle.sections import PromptSection, SearchSection, SpeechTokens, VoiceSection
from models.encoders.whisper import Arrays, WhisperSection, build_encoder
from models.features.log_mel import MEL_BINS, SAMPLE_RATE_HZ
from models.llms.llama import ExactAttention, Llama, LlamaSection, build_decoder, embedding_table
from models.projectors.subsample import read_adapter
from models.projectors.subsample_ctc import SubsampleCtcSection, build_adapter
from models.speech_decoders.whisper import WhisperDecoderSection, build_memory, read_tokens
from models.speech_decoders.whisper import build_decoder as build_speech_decoder
from models.speech_decoders.whisper import embedding_table as speech_embedding_table
from tests.models.test_voice_onnx import WINDOW_SAMPLES, write_graph
from tests.support.fakes.fake_models import END_TOKEN, tokeniser_definition
from tests.support.simulated_gpu.builder import add_simulated_plan
from tests.support.tiny.tiny_llama import tiny_llama
from tests.support.tiny.tiny_whisper import WIDTH, arrays_of, decoder_arrays, random_encoder, random_whisper
from training.adapter import Adapter, AdapterConfig

MAX_POSITIONS = 384
MAX_AUDIO_S = 30.0
LIMITS = Limits(decode_rows=4, prefill_rows=2, prefill_tokens=128, wanted=64)


@dataclass(frozen=True)
class TinyModels:
    """The weights that bundle and plans are written from, but for the adapter's, which are in the bundle."""

    encoder: Arrays
    llama: Llama


def write_speaking_bundle(folder: Path) -> TinyModels:
    """A bundle that the CPU's runtimes load, in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    definition = tokeniser_definition()
    llama, _ = tiny_llama(vocabulary=len(definition["model"]["vocab"]))
    tiny = TinyModels(arrays_of(random_encoder(1, positions=1500)), llama)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    build_encoder(tiny.encoder).save(folder / "encoder.onnx")
    _write_adapter(folder / "adapter.safetensors", llama.config.embedding_size)
    embedding = embedding_table(llama).astype(np.float32)
    build_adapter(read_adapter(folder / "adapter.safetensors"), embedding).save(folder / "adapter.onnx")
    build_decoder(llama, max_positions=MAX_POSITIONS, attention=ExactAttention).save(folder / "llm.onnx")
    np.save(folder / "embedding.npy", embedding_table(llama))
    write_graph(folder / "voice.onnx")
    write_bundle(folder, _describe(llama))
    return tiny


SPEECH_SPECIALS = (
    "endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startofprev", "nocaptions", "notimestamps",
)  # fmt: skip


def write_transcribing_bundle(folder: Path, precision: str = "fp32") -> TinyModels:
    """The same with a random speech decoder, whose transcripts the LLM answers about."""
    tiny = write_speaking_bundle(folder)
    definition = tokeniser_definition()
    text = [
        token for token in definition["model"]["vocab"] if token not in {each["content"] for each in definition["added_tokens"]}
    ]
    vocabulary = {token: number for number, token in enumerate(text)}
    specials = {f"<|{name}|>": len(vocabulary) + number for number, name in enumerate(SPEECH_SPECIALS)}
    added = [{**definition["added_tokens"][0], "id": id, "content": name} for name, id in specials.items()]
    speech = {**definition, "added_tokens": added, "model": {**definition["model"], "vocab": vocabulary}}
    (folder / "speech_tokenizer.json").write_text(json.dumps(speech))
    how = PRECISIONS[precision]
    whisper = random_whisper(2, vocabulary=len(vocabulary) + len(specials), positions=448, std=0.25)
    arrays = decoder_arrays(whisper)
    arrays = how.prepare_speech_decoder(arrays)
    decoder = build_speech_decoder(arrays, max_positions=448, linear=how.speech_decoder, head=how.head)
    decoder.save(folder / "speech_decoder.onnx")
    build_memory(decoder_arrays(whisper), how.speech_decoder).save(folder / "speech_memory.onnx")
    np.save(folder / "speech_embedding.npy", speech_embedding_table(arrays, np.float32))
    config = {"lang_ids": [specials["<|en|>"], specials["<|de|>"]], "suppress_ids": [3], "suppress_ids_begin": [4]}
    section = WhisperDecoderSection(
        architecture="whisper",
        precision=precision,
        graph="speech_decoder.onnx",
        memory_graph="speech_memory.onnx",
        embedding="speech_embedding.npy",
        tokeniser="speech_tokenizer.json",
        layers=2,
        embedding_size=WIDTH,
        vocabulary_size=whisper.config.vocab_size,
        max_positions=448,
        max_states=1500,
        tokens=SpeechTokens(**read_tokens(specials, config)),
        translation_instructions=("Translate to English.",),
    )
    _write_adapter(folder / "adapter.safetensors", WIDTH, blank_bias=-3.0)
    table = speech_embedding_table(arrays, np.float32)[: section.tokens.end]
    build_adapter(read_adapter(folder / "adapter.safetensors"), table).save(folder / "adapter.onnx")
    np.save(folder / "draft_embedding.npy", table)
    described = _describe(tiny.llama)
    drafting = {"vocabulary": "speech_decoder", "table": "draft_embedding.npy", "embedding_size": WIDTH}
    projector = described.require_projector().model_copy(update=drafting)
    encoder = described.encoder.model_copy(update={"floor_s": 2.0, "silence_behind_s": 1.0})
    (folder / "bundle.json").unlink()
    update = {"encoder": encoder, "projector": projector, "speech_decoder": section, "bridge": "transcript"}
    write_bundle(folder, described.model_copy(update=update))
    return tiny


def add_simulated_plans(folder: Path, tiny: TinyModels) -> Bundle:
    """The bundle with plans of all parts for the simulated GPU."""
    encoder = Part("encoder", "fp32", 0, speech_encoder_profiles(LIMITS), lambda: build_by_head_encoder(tiny.encoder, np.float32))
    parts = [
        encoder,
        adapter_part(open_bundle(folder), LIMITS, np.float32),
        llm_part(lambda: tiny.llama, "fp32", MAX_POSITIONS, LIMITS),
    ]
    for part in parts:
        add_simulated_plan(part, folder)
    return open_bundle(folder)


def with_search(bundle: Bundle) -> Bundle:
    """The same bundle, whose drafts are searched again with its LLM."""
    search = SearchSection(hypotheses=3, ctc_weight=0.7, token_bonus=6.0, margin=4.0, context=(0,), end_token=END_TOKEN)
    projector = bundle.manifest.require_projector().model_copy(update={"search": search})
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"projector": projector}))


def _write_adapter(path: Path, embedding_size: int, blank_bias: float = 0.0) -> None:
    torch.manual_seed(3)
    config = AdapterConfig(
        encoder_width=WIDTH, width=32, layers=1, heads=2, feed_forward=48, embedding_size=embedding_size, boundary_vectors=2
    )
    adapter = Adapter(config).eval()
    for name, parameter in adapter.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    # About half of the frames are blank.
    torch.nn.init.constant_(adapter.blank.bias, blank_bias)
    trained = {**asdict(config), "blank_threshold": 0.5, "boundary_instructions": ["Transcribe the speech to text."]}
    save_file(adapter.state_dict(), path, metadata={"config": json.dumps(trained)})


def _describe(llama: Llama) -> BundleDescription:
    config = llama.config
    return BundleDescription(
        name="tiny",
        created=datetime(2026, 1, 2, tzinfo=UTC),
        sample_rate_hz=SAMPLE_RATE_HZ,
        max_audio_s=MAX_AUDIO_S,
        encoder=WhisperSection(
            architecture="whisper", precision="fp32", graph="encoder.onnx", mel_bins=MEL_BINS, width=WIDTH, states_per_s=50.0
        ),
        projector=SubsampleCtcSection(
            architecture="subsample_ctc",
            precision="fp32",
            graph="adapter.onnx",
            weights="adapter.safetensors",
            encoder_width=WIDTH,
            subsampling=4,
            boundary_instructions=("Transcribe the speech to text.",),
            embedding_size=config.embedding_size,
        ),
        llm=LlamaSection(
            architecture="llama",
            precision="fp32",
            graph="llm.onnx",
            embedding="embedding.npy",
            tokeniser="tokenizer.json",
            layers=config.layers,
            key_value_heads=config.key_value_heads,
            head_size=config.head_size,
            embedding_size=config.embedding_size,
            vocabulary_size=config.vocabulary_size,
            max_positions=MAX_POSITIONS,
        ),
        prompt=PromptSection(prefix=(1, 40), after_instruction=(41,), suffix=(42,), end_tokens=(END_TOKEN, 0)),
        voice=VoiceSection(
            architecture="silero", graph="voice.onnx", sample_rate_hz=SAMPLE_RATE_HZ, window_samples=WINDOW_SAMPLES
        ),
        licences={"all": "random"},
    )
