"""The trained part of the model: 4x subsampling, a few transformer layers, a projection into the LLM's embedding space.

`FrameAdapter` is that of SLM (arXiv 2310.00230, section 3.2). `Adapter` has a CTC head that needs no weights of its own but a
blank: output frames are scored against the LLM's frozen embedding table. The blank is factorised as in HAT (arXiv 2003.07705):
P(blank) is one sigmoid, the tokens share the rest by a softmax, so a frame that is blank never needs the vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class AdapterConfig:
    """`subsampling`: "uniform" keeps each 4th encoder state (the paper); "stack" concatenates 4 of them.

    `head`: "frames" in a `FrameAdapter`, "ctc" in an `Adapter`.

    `targets`: what the draft is written in, a name of `training/targets.py`; `outputs_per_frame`: how many symbols of it a frame
    may write, each with a blank of its own.
    """

    encoder_width: int = 512
    width: int = 512
    layers: int = 3
    heads: int = 8
    feed_forward: int = 2048
    embedding_size: int = 576
    reduction: int = 4
    subsampling: str = "uniform"
    boundary_vectors: int = 8
    rope_theta: float = 10000.0
    dropout: float = 0.1
    targets: str = "llm"
    outputs_per_frame: int = 1
    head: str = "ctc"


def rotary_tables(frames: int, head_size: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [frames, head_size / 2] of rotary position embedding in the half-rotation form."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, device=device) / head_size)
    angles = torch.arange(frames, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)


class Layer(nn.Module):
    """Pre-norm transformer layer, attention over the whole utterance."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward_in = nn.Linear(config.width, config.feed_forward)
        self.feed_forward_out = nn.Linear(config.feed_forward, config.width)

    def forward(self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """x [batch, frames, width]; mask [batch, 1, 1, frames], true where there is a frame."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(
            rotate(q, *rotary).to(v.dtype), rotate(k, *rotary).to(v.dtype), v, attn_mask=mask
        )
        x = x + functional.dropout(self.attention_out(y.transpose(1, 2).flatten(2)), self.dropout, self.training)
        y = functional.gelu(self.feed_forward_in(self.feed_forward_norm(x)))
        return x + functional.dropout(self.feed_forward_out(y), self.dropout, self.training)


class SubsampledTransformer(nn.Module):
    """The layers: 4x subsampling and a transformer."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        stacked = config.encoder_width * (config.reduction if config.subsampling == "stack" else 1)
        self.input = nn.Linear(stacked, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def subsample(self, states: Tensor, phase: int = 0) -> Tensor:
        """Turn [batch, states, width] into [batch, states / reduction, width (* reduction)]; states divide by `reduction`."""
        if self.config.subsampling == "stack":
            batch, count, _ = states.shape
            return states.reshape(batch, count // self.config.reduction, -1)
        return states[:, phase :: self.config.reduction]

    def forward(self, states: Tensor, frames: Tensor, phase: int = 0) -> tuple[Tensor, Tensor]:
        """Encoder states [batch, states, encoder_width] and the number of adapter frames of each utterance [batch].

        Returns hidden frames [batch, frames, width], already normalised, and the mask [batch, frames] of real ones.
        """
        x = self.input(self.subsample(states, phase))
        mask = torch.arange(x.shape[1], device=x.device) < frames[:, None]
        rotary = rotary_tables(x.shape[1], self.config.width // self.config.heads, self.config.rope_theta, x.device)
        for layer in self.layers:
            x = layer(x, mask[:, None, None], rotary)
        return self.norm(x), mask


class FrameAdapter(SubsampledTransformer):
    """The paper's adapter: the LLM reads a vector of each frame."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.output = nn.Linear(config.width, config.embedding_size)

    def match(self, table: Tensor) -> None:
        """Make frames as large as the embeddings of `table` [vocabulary, embedding_size], before any training."""
        nn.init.normal_(self.output.weight, std=float(table.float().std()) / self.config.width**0.5)
        nn.init.zeros_(self.output.bias)

    def frames(self, states: Tensor, frames: Tensor) -> Tensor:
        """Return vectors [batch, frames, embedding_size] for what `forward` takes."""
        hidden, _ = self(states, frames)
        vectors: Tensor = self.output(hidden)
        return vectors


class Adapter(SubsampledTransformer):
    """The adapter with a CTC head: the LLM reads a vector of each run of the draft."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.output = nn.Linear(config.width, config.outputs_per_frame * config.embedding_size)
        self.blank = nn.Linear(config.width, config.outputs_per_frame)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.residual = nn.Linear(config.width, config.embedding_size)
        self.boundary_before = nn.Parameter(torch.zeros(config.boundary_vectors, config.embedding_size))
        self.boundary_after = nn.Parameter(torch.zeros(config.boundary_vectors, config.embedding_size))
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)

    def token_queries(self, hidden: Tensor) -> Tensor:
        """Return queries that are scored against the embedding table: logits = token_queries(hidden) @ E.T

        [batch, frames, width] -> [batch, frames * outputs_per_frame, embedding_size]
        """
        queries: Tensor = self.output(hidden) * self.logit_scale
        split: Tensor = queries.unflatten(-1, (self.config.outputs_per_frame, -1))
        return split.flatten(1, 2)

    def blank_logits(self, hidden: Tensor) -> Tensor:
        """Turn [batch, frames, width] into [batch, frames * outputs_per_frame]."""
        logits: Tensor = self.blank(hidden)
        return logits.flatten(1)
