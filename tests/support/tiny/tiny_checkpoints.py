"""Tiny random checkpoints of published families, as transformers saves them, with a byte-level BPE tokeniser of their kind."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from models.text.spelling import byte_alphabet

SENTENCES = ("Transcribe the speech to text.", "the end of the empty output file name", "Wie viele Wörter? Zwölf!")
TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Mistral's files cut text into words."""
WHISPER_SPECIALS = (
    "endoftext", "startoftranscript", "en", "de", "fr", "translate", "transcribe", "startoflm", "startofprev", "nospeech",
    "notimestamps",
)  # fmt: skip


def write_tokeniser(file: Path, specials: Sequence[str]) -> dict[str, int]:
    """Train a byte-level BPE tokeniser, whose special tokens come last, and write its `tokenizer.json`; return their ids."""
    tokeniser: Any = Tokenizer(models.BPE())
    tokeniser.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokeniser.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokeniser.train_from_iterator(SENTENCES, trainer)
    tokeniser.add_special_tokens(list(specials))
    tokeniser.save(str(file))
    definition = cast(dict[str, Any], json.loads(file.read_text()))
    return {token["content"]: token["id"] for token in definition["added_tokens"]}


def write_qwen_tokeniser(folder: Path, specials: Sequence[str]) -> dict[str, int]:
    """Write a tokeniser as `vocab.json`, `merges.txt` and `tokenizer_config.json`; return the ids of the special tokens."""
    ids = write_tokeniser(folder / "tokenizer.json", specials)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({text: id for text, id in model["vocab"].items() if text not in ids}))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    added = {str(id): {"content": name, "special": True} for name, id in ids.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "eos_token": "<|im_end|>"}))
    return ids


def write_tekken_tokeniser(folder: Path, specials: Sequence[str]) -> tuple[dict[str, int], int]:
    """Write a tokeniser as `tekken.json`; return the ids of the special tokens, which come first, and the count of all tokens."""
    write_tokeniser(folder / "tokenizer.json", ())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    alphabet = byte_alphabet()
    ordered = sorted(vocabulary, key=lambda text: int(vocabulary[text]))
    spelled = [base64.b64encode(bytes(alphabet[character] for character in text)).decode() for text in ordered]
    size = len(ordered) + len(specials)
    content = {
        "config": {"pattern": TEKKEN_WORDS, "default_vocab_size": size, "default_num_special_tokens": len(specials)},
        "vocab": [{"rank": rank, "token_bytes": token} for rank, token in enumerate(spelled)],
        "special_tokens": [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(specials)],
    }
    (folder / "tekken.json").write_text(json.dumps(content))
    return {name: rank for rank, name in enumerate(specials)}, size


def spread_weights(model: torch.nn.Module, std: float = 0.25) -> None:
    """Make the weights large enough for answers that vary; those of normalisations stay near one."""
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
        else:
            torch.nn.init.normal_(parameter, std=std)


def write_whisper(folder: Path, *, mel_bins: int = 80, multilingual: bool = True) -> WhisperForConditionalGeneration:
    """Write a Whisper of two layers; return it for comparison."""
    folder.mkdir(parents=True)
    ids = write_tokeniser(folder / "tokenizer.json", [f"<|{name}|>" for name in WHISPER_SPECIALS])
    torch.manual_seed(5)
    config = WhisperConfig(
        vocab_size=max(ids.values()) + 1, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=1500,
        max_target_positions=448, num_mel_bins=mel_bins, pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"], suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.eval()
    spread_weights(model)
    # A tied head would repeat the last token for ever, were its input not turned about before.
    torch.nn.init.normal_(model.model.decoder.layer_norm.weight)
    torch.nn.init.normal_(model.model.decoder.embed_positions.weight)
    control = [id for name, id in ids.items() if name != "<|endoftext|>"]
    generation: dict[str, Any] = {
        "decoder_start_token_id": config.decoder_start_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "is_multilingual": multilingual,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "suppress_tokens": [7, *control],
        "begin_suppress_tokens": [220, config.eos_token_id],
        "max_length": 448,
    }
    if multilingual:
        generation["lang_to_id"] = {f"<|{code}|>": ids[f"<|{code}|>"] for code in ("en", "de", "fr")}
        generation["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(folder)
    return model
