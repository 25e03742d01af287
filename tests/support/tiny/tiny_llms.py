"""Tiny random LLMs of published families, as transformers saves them, with a chat template and a byte-level BPE tokeniser."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.tiny.tiny_checkpoints import spread_weights, write_tokeniser

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"head_dim": 16, "sliding_window": None}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, "tie_word_embeddings": True}),
    "granite": (
        "Granite",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    ),
}


def llm_config(kind: str, vocabulary: int) -> dict[str, Any]:
    """Return the configuration of a kind with three layers."""
    shape = {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": None,
    }  # fmt: skip
    return {**shape, **KINDS[kind][1]}


def write_llm(folder: Path, kind: str) -> Any:
    """Write an LLM; return transformers' model."""
    folder.mkdir(parents=True)
    ids = write_tokeniser(folder / "tokenizer.json", SPECIALS)
    torch.manual_seed(7)
    name = KINDS[kind][0]
    config = getattr(transformers, f"{name}Config")(
        **llm_config(kind, max(ids.values()) + 1), eos_token_id=ids["<|im_end|>"], bos_token_id=ids["<|endoftext|>"]
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    model.eval()
    spread_weights(model, 0.12)
    model.save_pretrained(folder)
    named = {"chat_template": CHATML, "eos_token": "<|im_end|>", "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return model
