"""The LLM's input embeddings, of which only the rows in use are read into memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.protocols import BackendError, Float32


class EmbeddingTable:
    """A `.npy` file [vocabulary_size, embedding_size] in float16 or float32."""

    def __init__(self, file: Path, vocabulary_size: int, embedding_size: int) -> None:
        """Raises `BackendError` where the file cannot be loaded or has another shape."""
        try:
            self._table = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise BackendError(f"{file.name} could not be loaded: {error}") from error
        if self._table.shape != (vocabulary_size, embedding_size):
            raise BackendError(
                f"{file.name} has the shape {self._table.shape}, and the LLM takes {(vocabulary_size, embedding_size)}"
            )

    def rows(self, tokens: Sequence[int]) -> Float32:
        """Embeddings [tokens, embedding_size] of token ids."""
        rows: Float32 = self._table[np.asarray(tokens, np.int64)].astype(np.float32)
        return rows
