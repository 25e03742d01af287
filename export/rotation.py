"""Rotate a llama model's inner spaces, which changes nothing in exact arithmetic and much in 8 bits.

A few channels of an LLM's activations are tens of times larger than the rest, and one 8-bit scale per row then leaves the rest
few levels. A rotation spreads them over all channels (QuaRot, arXiv:2404.00456). It is folded into the weights: that of
the residual stream, whose normalisation commutes with it once its gains are in the next weights, and that of each head's
values. The gated activations before `down_proj` cannot be rotated offline, nor need be the keys and queries, which stay float.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from export.gguf_weights import Llama
from export.llama_decoder import INPUT_ROTATION

Float64 = npt.NDArray[np.float64]

SEED = 0
READERS = {"input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
           "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj")}  # fmt: skip
"""Which products read what each normalisation gives."""
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
"""Which products add to the residual stream."""


def random_rotation(size: int) -> Float64:
    """An orthogonal matrix [size, size], the same every time."""
    rotation: Float64 = np.linalg.qr(np.random.default_rng(SEED).standard_normal((size, size)))[0]
    return rotation


def spreading_rotation(size: int) -> Float64:
    """An orthogonal matrix [size, size]: of entries of one magnitude (Hadamard) for 24^a * 2^b, else a random one.

    The former spreads a single outlier evenly, and was measured to lose less.
    """
    matrix, rest = np.ones((1, 1)), size
    for factor, block in ((24, _paley(23)), (2, np.array([[1.0, 1.0], [1.0, -1.0]]))):
        while rest % factor == 0:
            matrix, rest = np.kron(matrix, block), rest // factor
    rotation: Float64 = matrix.T / np.sqrt(size)
    return rotation if rest == 1 else random_rotation(size)


def _paley(prime: int) -> Float64:
    """The Hadamard matrix of order prime + 1, for a prime that is 3 modulo 4."""
    squares = {number * number % prime for number in range(1, prime)}
    row = np.array([0.0, *(1.0 if number in squares else -1.0 for number in range(1, prime))])
    matrix = np.ones((prime + 1, prime + 1))
    matrix[1:, 0] = -1
    matrix[1:, 1:] = row[(np.arange(prime)[:, None] - np.arange(prime)) % prime]
    return matrix + np.eye(prime + 1) * (np.arange(prime + 1) > 0)


def rotated(model: Llama) -> Llama:
    """A model that computes the same from the same embeddings: `INPUT_ROTATION` takes them into its rotated stream."""
    config = model.config
    weights = {name: array.astype(np.float64) for name, array in model.weights.items()}
    stream, values = spreading_rotation(config.embedding_size), spreading_rotation(config.head_size)
    if config.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = weights["lm_head.weight"] * weights["model.norm.weight"] @ stream.T
    weights["model.norm.weight"] = np.ones(config.embedding_size)
    weights[INPUT_ROTATION] = stream
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        for norm, readers in READERS.items():
            gain = weights[f"{prefix}{norm}.weight"]
            weights[f"{prefix}{norm}.weight"] = np.ones(config.embedding_size)
            for reader in readers:
                weights[f"{prefix}{reader}.weight"] = weights[f"{prefix}{reader}.weight"] * gain @ stream.T
        for writer in WRITERS:
            weights[f"{prefix}{writer}.weight"] = stream @ weights[f"{prefix}{writer}.weight"]
        value, output = f"{prefix}self_attn.v_proj.weight", f"{prefix}self_attn.o_proj.weight"
        by_head = weights[value].reshape(config.key_value_heads, config.head_size, config.embedding_size)
        weights[value] = (values @ by_head).reshape(-1, config.embedding_size)
        by_head = weights[output].reshape(config.embedding_size, config.heads, config.head_size)
        weights[output] = (by_head @ values.T).reshape(config.embedding_size, -1)
    singles = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    singles["model.embed_tokens.weight"] = model.weights["model.embed_tokens.weight"]
    return Llama(dataclasses.replace(config, tied=False), singles)
