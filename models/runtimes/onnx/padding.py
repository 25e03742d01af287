"""Rows of different lengths as one batch."""

from collections.abc import Sequence

import numpy as np

from models.protocols import Float32, Int64, PrefillRow


def pad_rows(rows: Sequence[PrefillRow], tokens: int) -> Float32:
    """The rows' embeddings [rows, tokens, D], each padded on the right to `tokens` positions.

    With its own last position: what padding leaves in the slots must be finite.
    """
    return np.stack([row.embeddings[np.minimum(np.arange(tokens), len(row.embeddings) - 1)] for row in rows])


def wanted_places(rows: Sequence[PrefillRow]) -> Int64:
    """(row, token) [N, 2] of the positions whose logits are wanted, row after row."""
    places = [
        (index, token) for index, row in enumerate(rows) for token in range(len(row.embeddings) - row.wanted, len(row.embeddings))
    ]
    return np.array(places, np.int64).reshape(-1, 2)


def split_by_row(logits: Float32, rows: Sequence[PrefillRow]) -> list[Float32]:
    """Logits [N, V] of `wanted_places`, cut into those of each row."""
    return np.split(logits, np.cumsum([row.wanted for row in rows[:-1]], dtype=np.int64))
