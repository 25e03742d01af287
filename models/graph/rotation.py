"""Rotations of a model's inner spaces, which change nothing in exact arithmetic and much in 8 bits.

A few channels of an LLM's activations are tens of times larger than the rest, and one 8-bit scale per row then leaves the rest
few levels. A rotation spreads them over all channels (QuaRot, arXiv:2404.00456). A model folds it into
its weights (`models.llms.llama`, `models.encoders.whisper`): the normalisation of a residual stream commutes with a rotation once
its gains are in the next weights.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

SEED = 0


def random_rotation(size: int) -> Float64:
    """Return an orthogonal matrix [size, size], the same every time."""
    rotation: Float64 = np.linalg.qr(np.random.default_rng(SEED).standard_normal((size, size)))[0]
    return rotation


@dataclass(frozen=True)
class Rotation:
    """The orthogonal matrix kron(left, right) / sqrt(size), for two Hadamard-like factors F with F F.T = len(F) I."""

    left: Float64
    right: Float64

    @property
    def size(self) -> int:
        return len(self.left) * len(self.right)

    @property
    def matrix(self) -> Float64:
        """The whole matrix [size, size]."""
        matrix: Float64 = np.kron(self.left, self.right) / np.sqrt(self.size)
        return matrix

    def turn(self, rows: Float64) -> Float64:
        """Return `rows @ matrix.T` by the factors, which costs a small part of the whole product."""
        split = rows.reshape(-1, len(self.left), len(self.right))
        turned: Float64 = (self.left @ (split @ self.right.T)).reshape(rows.shape) / np.sqrt(self.size)
        return turned


def spreading_rotation(size: int) -> Rotation:
    """Return a Hadamard matrix, scaled, if size is 24^a * 2^b, else its product with a Hartley matrix of the odd rest.

    A Hadamard matrix spreads a single outlier evenly, and was measured to lose less than a random one.
    """
    factors, rest = [], size
    for factor, block in ((24, _paley(23).T), (2, np.array([[1.0, 1.0], [1.0, -1.0]]))):
        while rest % factor == 0:
            factors.append(block)
            rest //= factor
    left, right = _hartley(rest), np.ones((1, 1))
    for block in factors:
        if len(left) <= len(right):
            left = np.kron(left, block)
        else:
            right = np.kron(right, block)
    return Rotation(left, right)


def _hartley(size: int) -> Float64:
    """Return the symmetric matrix cos + sin of 2 pi j k / size, whose entries are at most sqrt(2) in size."""
    angles = 2 * np.pi / size * (np.outer(np.arange(size), np.arange(size)) % size)
    matrix: Float64 = np.cos(angles) + np.sin(angles)
    return matrix


def _paley(prime: int) -> Float64:
    """Return the Hadamard matrix of order prime + 1, for a prime that is 3 modulo 4."""
    squares = {number * number % prime for number in range(1, prime)}
    row = np.array([0.0, *(1.0 if number in squares else -1.0 for number in range(1, prime))])
    matrix = np.ones((prime + 1, prime + 1))
    matrix[1:, 0] = -1
    matrix[1:, 1:] = row[(np.arange(prime)[:, None] - np.arange(prime)) % prime]
    return matrix + np.eye(prime + 1) * (np.arange(prime + 1) > 0)
