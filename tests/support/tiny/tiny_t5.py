"""A random T5 encoder-decoder of two layers each, for us and for transformers."""

from typing import Any

import torch
from transformers import T5Config as TransformersConfig
from transformers import T5ForConditionalGeneration

from models.llms.t5 import T5, T5Config

VOCABULARY = 96


def untie_head(model: Any, std: float) -> None:
    """Give a model a head of its own: transformers 5 ties that of every new one, and keeps apart what was trained apart."""
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight).normal_(std=std))


def tiny_t5(*, gated: bool = True, tied: bool = False) -> tuple[T5, T5ForConditionalGeneration]:
    """The same weights twice, drawn from one seed."""
    torch.manual_seed(0)
    config = T5Config(
        layers=2,
        embedding_size=64,
        heads=4,
        head_size=16,
        feed_forward_size=128,
        vocabulary_size=VOCABULARY,
        distance_buckets=8,
        largest_distance=20,
        norm_epsilon=1e-6,
    )
    theirs = T5ForConditionalGeneration(
        TransformersConfig(
            vocab_size=VOCABULARY,
            d_model=config.embedding_size,
            d_kv=config.head_size,
            d_ff=config.feed_forward_size,
            num_layers=config.layers,
            num_heads=config.heads,
            relative_attention_num_buckets=config.distance_buckets,
            relative_attention_max_distance=config.largest_distance,
            feed_forward_proj="gated-gelu" if gated else "relu",
            tie_word_embeddings=tied,  # type: ignore[call-arg]
            dropout_rate=0.0,
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if not tied:
        untie_head(theirs, 0.2)
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    if tied:
        # A tied head reads states that are scaled.
        weights["lm_head.weight"] = weights["shared.weight"] * config.embedding_size**-0.5
    return T5(config, weights), theirs
