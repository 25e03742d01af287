"""Write the parts of a bundle, each from its weights into a folder, and return the sections that describe them."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.importers.byte_level_bpe import restore_merges
from export.precisions import PRECISIONS, Precision
from models.bundle.sections import ProjectorSection, SpeechTokens, VoiceSection
from models.encoders.whisper import STATES_PER_S, Arrays, WhisperSection, build_encoder, silent_rest
from models.features.log_mel import HOPS_OF_A_FRAME, SAMPLE_RATE_HZ
from models.graph.linear import Float32
from models.graph.packed_attention import SPAN_STEP
from models.llms.llama import EMBEDDING, ExactAttention, Llama, LlamaConfig, LlamaSection, build_decoder
from models.llms.t5 import EMBEDDING as T5_EMBEDDING
from models.llms.t5 import T5, T5Config, T5Section, build_t5_decoder, build_t5_memory
from models.projectors import subsample
from models.projectors.subsample import SubsampleSection, TrainedAdapter
from models.projectors.subsample_ctc import SubsampleCtcSection, build_adapter
from models.speech_decoders import whisper
from models.speech_decoders.whisper import WhisperDecoderSection

MAX_AUDIO_S = 30.0
VOICE_WINDOW_SAMPLES = 512
MAX_PROMPT_POSITIONS, MAX_ANSWER_POSITIONS = 1024, 512
"""Positions that an encoder-decoder LLM reads, and tokens that it writes at most, the start token among them."""
TRANSCRIPTION_INSTRUCTIONS = (
    "Transcribe the speech to text.",
    "Transcribe the audio.",
    "Transcribe this recording.",
    "Transcribe.",
    "What does the speaker say?",
    "Give me the transcript.",
)
TRANSLATION_INSTRUCTIONS = (
    "Translate the speech into English.",
    "Translate the speech to English.",
    "Translate this into English.",
    "Translate this to English.",
    "Translate into English.",
    "Translate to English.",
)


@dataclass(frozen=True)
class HeardSilence:
    """The silence that Whisper's encoder hears behind an utterance: `behind_s`, and so much that it hears `floor_s` in all.

    With `window_s` its graph adds the rest of a window of so many seconds (`models.graph.silent_rest.SilentRest`). Of the last
    `convolved_frames` only the convolutions hear.
    """

    floor_s: float = 0.0
    behind_s: float = 0.0
    window_s: float = 0.0
    convolved_frames: int = 0


WHOLE_WINDOW = HeardSilence(floor_s=MAX_AUDIO_S)
"""As Whisper was trained, to the last bit."""
CONDENSED_WINDOW = HeardSilence(behind_s=0.5, window_s=MAX_AUDIO_S, convolved_frames=2)
"""Nearly the same states for a part of the time: `docs/results.md` has what it costs and changes."""
NO_SILENCE = HeardSilence()
MASKED_SILENCE = HeardSilence(convolved_frames=4)
"""For an attention that is masked behind the audio. The convolutions hear more silence than they can reach."""


def speech_precision(precision: str) -> str:
    """Return the precision of encoder, projector and speech decoder in a bundle of a precision."""
    return "fp32" if precision == "fp32" else "int8"


def write_encoder(
    arrays: Arrays, precision: str, folder: Path, silence: HeardSilence, *, pooled: int = 1, hop_multiple: int = HOPS_OF_A_FRAME
) -> WhisperSection:
    """Write Whisper's encoder, which averages `pooled` states at a time. Audio is padded to `hop_multiple` hops."""
    how = PRECISIONS[precision]
    width, mel_bins, _ = arrays["encoder/conv1/weight"].shape
    section = WhisperSection(
        architecture="whisper",
        precision=speech_precision(precision),
        graph="encoder.onnx",
        mel_bins=mel_bins,
        width=width,
        states_per_s=STATES_PER_S / pooled,
        floor_s=silence.floor_s,
        silence_behind_s=silence.behind_s,
        silent_window_s=silence.window_s,
        silent_states=len(silent_rest(silence.window_s).groups()),
        hop_multiple=hop_multiple,
        silent_frames=silence.convolved_frames,
    )
    prepared = how.prepare_encoder(arrays)
    graph = build_encoder(prepared, how.speech, dropped=section.dropped, pooled=pooled, rest=section.rest)
    graph.save(folder / section.graph)
    return section


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as `np.save` does, whose error on a full disk has no number."""
    whole = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
        file.write(whole.data)


def write_speech_decoder(
    arrays: Arrays, tokens: SpeechTokens, tokeniser: Path, precision: str, folder: Path, encoder: WhisperSection
) -> WhisperDecoderSection:
    """Write the graphs, the embeddings and the tokeniser of Whisper's decoder, which reads the states of `encoder`."""
    how = PRECISIONS[precision]
    prepared, config = how.prepare_speech_decoder(arrays), whisper.read_config(arrays)
    positions = config.max_positions // SPAN_STEP * SPAN_STEP
    decoder = whisper.build_decoder(
        prepared, max_positions=positions, linear=how.speech_decoder, head=how.head, rest=encoder.rest
    )
    decoder.save(folder / "speech_decoder.onnx")
    whisper.build_memory(arrays, how.speech_decoder).save(folder / "speech_memory.onnx")
    table = whisper.embedding_table(prepared, np.float32 if precision == "fp32" else np.float16)
    save_array(folder / "speech_embedding.npy", table)
    _write_whole_tokeniser(tokeniser, folder / "speech_tokenizer.json")
    return WhisperDecoderSection(
        architecture="whisper",
        precision=speech_precision(precision),
        graph="speech_decoder.onnx",
        memory_graph="speech_memory.onnx",
        embedding="speech_embedding.npy",
        tokeniser="speech_tokenizer.json",
        layers=config.layers,
        embedding_size=config.heads * config.head_size,
        vocabulary_size=config.vocabulary_size,
        max_positions=positions,
        max_states=round(MAX_AUDIO_S * STATES_PER_S) + encoder.added_states,
        tokens=tokens,
        transcription_instructions=TRANSCRIPTION_INSTRUCTIONS,
        translation_instructions=TRANSLATION_INSTRUCTIONS if tokens.multilingual else (),
    )


def _write_whole_tokeniser(source: Path, target: Path) -> None:
    """Copy a `tokenizer.json`, with the merges that many of Whisper's lack."""
    definition = json.loads(source.read_text(encoding="utf-8"))
    with suppress(ValueError):
        restore_merges(definition)
    target.write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")


def write_llm(llama: Llama, precision: str, folder: Path, max_positions: int, how: Precision | None = None) -> LlamaSection:
    """Write the LLM's graph and embeddings; its tokeniser is `tokenizer.json`, which the caller writes.

    `how` its products are written is that of the precision, where nothing else is given.
    """
    how = how or PRECISIONS[precision]
    _save_embeddings(llama.weights[EMBEDDING], precision, folder)
    decoder = build_decoder(
        how.prepare_llm(llama), max_positions=max_positions, attention=ExactAttention, body=how.body, head=how.head
    )
    decoder.save(folder / "llm.onnx")
    return LlamaSection(architecture="llama", max_positions=max_positions, **_llm_values(llama.config, precision))


def _save_embeddings(table: npt.NDArray[np.floating], precision: str, folder: Path) -> None:
    save_array(folder / "embedding.npy", table.astype(np.float32 if precision == "fp32" else np.float16))


def _llm_values(config: LlamaConfig | T5Config, precision: str) -> dict[str, Any]:
    """Return the values of an LLM's section that are the same for all families."""
    return {
        "precision": precision,
        "graph": "llm.onnx",
        "embedding": "embedding.npy",
        "tokeniser": "tokenizer.json",
        "layers": config.layers,
        "key_value_heads": config.key_value_heads,
        "head_size": config.head_size,
        "embedding_size": config.embedding_size,
        "vocabulary_size": config.vocabulary_size,
    }


def write_t5(model: T5, precision: str, folder: Path, start_token: int) -> T5Section:
    """Write the graphs and the embeddings of a T5; its tokeniser is `tokenizer.json`, which the caller writes."""
    how = PRECISIONS[precision]
    _save_embeddings(model.weights[T5_EMBEDDING], precision, folder)
    build_t5_memory(model, max_states=MAX_PROMPT_POSITIONS, linear=how.body).save(folder / "llm_memory.onnx")
    decoder = build_t5_decoder(model, max_positions=MAX_ANSWER_POSITIONS, linear=how.body, head=how.head)
    decoder.save(folder / "llm.onnx")
    return T5Section(
        architecture="t5",
        memory_graph="llm_memory.onnx",
        max_positions=MAX_ANSWER_POSITIONS,
        max_states=MAX_PROMPT_POSITIONS,
        start_token=start_token,
        **_llm_values(model.config, precision),
    )


def write_adapter(file: Path, trained: TrainedAdapter, embeddings: Float32, precision: str, folder: Path) -> ProjectorSection:
    """Write the graph of an adapter of ours. One with a CTC head is scored against an LLM's embeddings, and keeps its file."""
    how, config = PRECISIONS[precision], trained.config
    values = {
        "precision": speech_precision(precision),
        "graph": "adapter.onnx",
        "encoder_width": config["encoder_width"],
        "subsampling": config["reduction"],
        "embedding_size": config["embedding_size"],
    }
    if config.get("head") == "frames":
        subsample.build_projector(trained, how.speech).save(folder / "adapter.onnx")
        return SubsampleSection(architecture="subsample", boundary_instructions=TRANSCRIPTION_INSTRUCTIONS, **values)
    shutil.copyfile(file, folder / "adapter.safetensors")
    build_adapter(trained, embeddings, how.speech, how.head).save(folder / "adapter.onnx")
    instructions = tuple(config["boundary_instructions"])
    return SubsampleCtcSection(
        architecture="subsample_ctc", weights="adapter.safetensors", boundary_instructions=instructions, **values
    )


def voice_section() -> VoiceSection:
    """Describe Silero's graph for 16 kHz, which the caller puts into `voice.onnx`."""
    return VoiceSection(
        architecture="silero", graph="voice.onnx", sample_rate_hz=SAMPLE_RATE_HZ, window_samples=VOICE_WINDOW_SAMPLES
    )
