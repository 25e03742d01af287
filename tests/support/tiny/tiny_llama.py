"""A random llama decoder of two layers, for us and for transformers."""

import torch
from transformers import LlamaConfig as TransformersConfig
from transformers import LlamaForCausalLM, Qwen2ForCausalLM
from transformers import Qwen2Config as TransformersQwenConfig

from models.llms.llama import Llama, LlamaConfig

MAX_POSITIONS = 128
VOCABULARY = 96


def tiny_llama(*, tied: bool = True, key_value_heads: int = 2, vocabulary: int = VOCABULARY) -> tuple[Llama, LlamaForCausalLM]:
    """The same weights twice, drawn from one seed."""
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        TransformersConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=key_value_heads,
            max_position_embeddings=MAX_POSITIONS,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    )
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    if tied:
        del weights["lm_head.weight"]
    config = LlamaConfig(
        layers=2,
        embedding_size=64,
        heads=4,
        key_value_heads=key_value_heads,
        head_size=16,
        feed_forward_size=96,
        vocabulary_size=vocabulary,
        rope_theta=1000.0,
        norm_epsilon=1e-5,
        tied=tied,
    )
    return Llama(config, weights), theirs


def tiny_qwen() -> tuple[Llama, Qwen2ForCausalLM]:
    """The same of Qwen2's kind: biases on query, key and value, four query heads to a key head."""
    ours, _ = tiny_llama(key_value_heads=1)
    theirs = Qwen2ForCausalLM(
        TransformersQwenConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            max_position_embeddings=MAX_POSITIONS,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    return Llama(ours.config, weights), theirs
