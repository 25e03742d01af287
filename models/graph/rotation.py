"""Rotations of a model's inner spaces, which change nothing in exact arithmetic and much in 8 bits.

A few channels of an LLM's activations are tens of times larger than the rest, and one 8-bit scale per row then leaves the rest
few levels. A rotation spreads them over all channels (QuaRot, arXiv:2404.00456). A model folds it into
its weights (`models.llms.llama`, `models.encoders.whisper`): the normalisation of a residual stream commutes with a rotation once
its gains are in the next weights.
"""

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

SEED = 0


def random_rotation(size: int) -> Float64:
    """Return an orthogonal matrix [size, size], the same every time."""
    rotation: Float64 = np.linalg.qr(np.random.default_rng(SEED).standard_normal((size, size)))[0]
    return rotation


def spreading_rotation(size: int) -> Float64:
    """Return an orthogonal matrix [size, size]: a Hadamard matrix, scaled, if size is 24^a * 2^b, else a random one.

    A Hadamard matrix spreads a single outlier evenly, and was measured to lose less.
    """
    matrix, rest = np.ones((1, 1)), size
    for factor, block in ((24, _paley(23)), (2, np.array([[1.0, 1.0], [1.0, -1.0]]))):
        while rest % factor == 0:
            matrix, rest = np.kron(matrix, block), rest // factor
    rotation: Float64 = matrix.T / np.sqrt(size)
    return rotation if rest == 1 else random_rotation(size)


def _paley(prime: int) -> Float64:
    """Return the Hadamard matrix of order prime + 1, for a prime that is 3 modulo 4."""
    squares = {number * number % prime for number in range(1, prime)}
    row = np.array([0.0, *(1.0 if number in squares else -1.0 for number in range(1, prime))])
    matrix = np.ones((prime + 1, prime + 1))
    matrix[1:, 0] = -1
    matrix[1:, 1:] = row[(np.arange(prime)[:, None] - np.arange(prime)) % prime]
    return matrix + np.eye(prime + 1) * (np.arange(prime + 1) > 0)
