"""Measure a model of a published size with random weights: its import, its memory, and the time for audio of 5, 11 and 30 s.

    python -m tests.export.checkpoints.real_size granite-4.0-1b-speech --folder DIRECTORY

The checkpoint (4.6 GB in bfloat16 for this one) and the bundle stay in the directory, and are taken from there the next time.
"""

import argparse
import json
import resource
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from ml_dtypes import bfloat16

from export.bundle_parts import VOICE_WINDOW_SAMPLES
from export.checkpoints.conversion import PullOptions
from export.checkpoints.hub import Hub
from export.markdown import table
from export.pull import pull_model
from export.store import Store, folder_bytes
from models.assemble import load_models
from models.bundle.io import Bundle, open_bundle
from models.chain import Models
from models.protocols import Float32
from server.engine.runner.runner import Runner
from server.engine.runner.sequence_builder import new_sequence
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from tests.models.test_voice_onnx import write_graph
from tests.support.clients.runner_client import run
from tests.support.tiny.tiny_checkpoints import write_qwen_tokeniser, write_tokeniser
from tests.support.tiny.tiny_speech_llms import GRANITE_CHAT, GRANITE_SPECIALS, QWEN3_ASR_SPECIALS

LENGTHS_S = (5, 11, 30)
TOKENS_PER_S = 3.5
RATE_HZ = 16_000
SCALE = 0.02


def granite_4_1b() -> Any:
    """Return the configuration of granite-4.0-1b-speech."""
    encoder = {
        "input_dim": 160, "num_layers": 16, "hidden_dim": 1024, "num_heads": 8, "dim_head": 128, "output_dim": 348,
        "context_size": 200, "max_pos_emb": 512, "conv_kernel_size": 15, "conv_expansion_factor": 2, "feedforward_mult": 4,
    }  # fmt: skip
    projector = {
        "model_type": "blip_2_qformer", "hidden_size": 1024, "encoder_hidden_size": 1024, "num_hidden_layers": 2,
        "num_attention_heads": 16, "intermediate_size": 4096, "cross_attention_frequency": 1,
    }  # fmt: skip
    text = {
        "model_type": "granite", "vocab_size": 100_353, "hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 40,
        "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 4096, "embedding_multiplier": 12.0,
        "attention_multiplier": 1 / 128, "residual_multiplier": 0.22, "logits_scaling": 8.0, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "eos_token_id": 0,
    }  # fmt: skip
    return transformers.GraniteSpeechConfig(
        encoder_config=encoder, projector_config=projector, text_config=text, audio_token_index=100_352, downsample_rate=5,
        window_size=15, has_lora_adapter=False, tie_word_embeddings=False,
    )  # fmt: skip


def qwen3_asr_600m() -> Any:
    """Return the configuration of Qwen3-ASR-0.6B."""
    encoder = {
        "num_mel_bins": 128, "encoder_layers": 18, "encoder_attention_heads": 14, "encoder_ffn_dim": 3584, "d_model": 896,
        "output_dim": 1024, "downsample_hidden_size": 480, "n_window": 50, "n_window_infer": 800,
    }  # fmt: skip
    text = {
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 65_536,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
    }  # fmt: skip
    return transformers.Qwen3ASRConfig(audio_config=encoder, text_config=text, tie_word_embeddings=True)


def write_granite_tokeniser(folder: Path) -> None:
    """Write a tokeniser of few tokens with a chat template."""
    write_tokeniser(folder / "tokenizer.json", GRANITE_SPECIALS)
    named = {"chat_template": GRANITE_CHAT, "eos_token": "<|end_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


@dataclass(frozen=True)
class RealSize:
    """The configuration of a model, its class in transformers, and what writes its tokeniser into a folder."""

    configure: Callable[[], Any]
    architecture: str
    write_tokeniser: Callable[[Path], object]


SIZES = {
    "granite-4.0-1b-speech": RealSize(granite_4_1b, "GraniteSpeechForConditionalGeneration", write_granite_tokeniser),
    "qwen3-asr-0.6b": RealSize(
        qwen3_asr_600m, "Qwen3ASRForConditionalGeneration", lambda folder: write_qwen_tokeniser(folder, QWEN3_ASR_SPECIALS)
    ),
}


def write_checkpoint(name: str, folder: Path) -> None:
    """Write random weights in bfloat16, tensor by tensor, with a tokeniser of few tokens."""
    size = SIZES[name]
    config = size.configure()
    with torch.device("meta"):
        tensors = getattr(transformers, size.architecture)(config).state_dict()
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    shapes = {each: list(tensor.shape) for each, tensor in tensors.items() if tensor.is_floating_point()}
    folder.mkdir(parents=True)
    header, end = {}, 0
    for each, shape in shapes.items():
        size_bytes = 2 * int(np.prod(shape, dtype=np.int64))
        header[each] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size_bytes]}
        end += size_bytes
    text, random = json.dumps(header).encode(), np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for each, shape in shapes.items():
            is_scale = each.endswith(("running_var", "norm.weight", "LayerNorm.weight", "layernorm.weight"))
            values = random.standard_normal(shape, np.float32) * np.float32(SCALE) + np.float32(is_scale)
            file.write(values.astype(bfloat16).tobytes())
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": [size.architecture]}))
    size.write_tokeniser(folder)


def import_checkpoint(name: str, folder: Path, precision: str) -> Bundle:
    """Return the bundle, which is written if it is not there yet, and say what that took."""
    store = Store(folder / "models")
    bundled = f"{name}-{precision}"
    if bundled in store.names():
        return open_bundle(store.require(bundled))
    processor_s, wall_s = time.process_time(), time.monotonic()
    voice = partial(write_graph, window_samples=VOICE_WINDOW_SAMPLES)
    bundle = pull_model(str(folder / name), PullOptions(precision, name=bundled), Hub(folder / "downloads"), store, voice)
    print(
        f"import: {time.process_time() - processor_s:.0f} s of the processor, {time.monotonic() - wall_s:.0f} s of wall time, "
        f"{peak_gb():.1f} GB of memory at most, bundle of {folder_bytes(bundle.folder) / 1e6:.0f} MB",
        flush=True,
    )
    return bundle


def measure(models: Models, length_s: int) -> list[str]:
    """Return the cells of a row: an answer that no token ends, and its first token."""
    audio: Float32 = np.random.default_rng(length_s).normal(0, 0.1, length_s * RATE_HZ).astype(np.float32)
    cells = [f"{length_s} s"]
    for tokens in (round(TOKENS_PER_S * length_s), 1):
        request = InstructRequest("1", audio, SpeechTask(models.transcription_instruction, SamplingOptions(max_tokens=tokens)))
        processor_s, wall_s = time.process_time(), time.monotonic()
        sequence, _ = run(Runner(models), request)
        processor_s, wall_s = time.process_time() - processor_s, time.monotonic() - wall_s
        if len(sequence.tokens) != tokens:
            raise ValueError(f"the answer has {len(sequence.tokens)} tokens, not {tokens}")
        cells += [f"{processor_s:.1f} s", f"{wall_s:.1f} s"]
    return cells


def peak_gb() -> float:
    """Return the most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SIZES))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--precision", default="int8")
    options = parser.parse_args(arguments)
    if not (options.folder / options.name / "tokenizer_config.json").exists():
        write_checkpoint(options.name, options.folder / options.name)
    bundle = import_checkpoint(options.name, options.folder, options.precision)
    models = load_models(bundle, slots=1, threads=0)
    models = replace(models, template=replace(models.template, end_tokens=(-1,)))
    new_sequence(models, InstructRequest("0", np.zeros(RATE_HZ, np.float32), SpeechTask("Transcribe.")), lambda _event: None)
    rows = []
    for length_s in LENGTHS_S:
        rows.append(measure(models, length_s))
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(("Audio", "Processor", "Wall", "First token: processor", "Wall"), rows))
    print(f"{peak_gb():.1f} GB of memory at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
