"""Which tiles each kernel takes, by the device's architecture and the shape: a table, measured by nobody yet but gated.

An autotuner would choose differently from run to run and machine to machine; a table is the same everywhere, can be compiled
ahead of time and gated (`kernels.gates`). Rows follow from what fills the device (few rows) or feeds it (many).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearTiles:
    """Tile sizes of a product, warps and pipeline stages. `splits` > 1: parts of the inner dimension, summed in order after.

    `persistent`: over TMA, a program a multiprocessor.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    splits: int = 1
    persistent: bool = False


@dataclass(frozen=True)
class AttentionTiles:
    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class VocabularyTiles:
    """`splits`: parts of the vocabulary, scanned at once by as many programs and merged in order."""

    rows: int
    tokens: int
    inner: int
    warps: int
    stages: int
    splits: int


ARCHITECTURES = (80, 90, 100)
MANY_ROWS = 1000
# Split where there is no norm to fold in and one tile a program leaves most of the device idle.
SPLIT_COLUMNS = 1536

SMALL = {
    80: LinearTiles(64, 64, 64, warps=4, stages=3),
    90: LinearTiles(64, 64, 64, warps=4, stages=4),
    100: LinearTiles(64, 64, 64, warps=4, stages=4),
}
SPLIT = {
    80: LinearTiles(64, 64, 64, warps=4, stages=3, splits=4),
    90: LinearTiles(64, 64, 64, warps=4, stages=4, splits=4),
    100: LinearTiles(64, 64, 64, warps=4, stages=4, splits=4),
}
LARGE = {
    80: LinearTiles(128, 128, 32, warps=8, stages=4),
    90: LinearTiles(128, 128, 64, warps=8, stages=3, persistent=True),
    100: LinearTiles(128, 128, 64, warps=8, stages=3, persistent=True),
}
REDUCE_ROWS, REDUCE_COLUMNS, REDUCE_WARPS = 4, 128, 4

ATTENTION = {
    80: AttentionTiles(64, 64, warps=4, stages=2),
    90: AttentionTiles(64, 64, warps=4, stages=2),
    100: AttentionTiles(64, 64, warps=4, stages=2),
}

FEW_KEPT = {
    80: VocabularyTiles(64, 64, 64, warps=4, stages=3, splits=108),
    90: VocabularyTiles(64, 64, 64, warps=4, stages=4, splits=132),
    100: VocabularyTiles(64, 64, 64, warps=4, stages=4, splits=148),
}
MANY_KEPT = {
    80: VocabularyTiles(64, 128, 64, warps=8, stages=3, splits=8),
    90: VocabularyTiles(64, 128, 64, warps=8, stages=3, splits=8),
    100: VocabularyTiles(64, 128, 64, warps=8, stages=3, splits=8),
}
MERGE_WARPS = 4
KEEP_BLOCK, KEEP_WARPS = 1024, 4


def linear_tiles(architecture: int, rows: int, columns: int, has_norm: bool) -> LinearTiles:
    """Tiles for a product of `rows` x `columns`; rows as the buffer has them, so that one captured graph has one choice."""
    if rows >= MANY_ROWS:
        return LARGE[architecture]
    if not has_norm and columns <= SPLIT_COLUMNS:
        return SPLIT[architecture]
    return SMALL[architecture]


def vocabulary_tiles(architecture: int, rows: int) -> VocabularyTiles:
    return MANY_KEPT[architecture] if rows >= MANY_ROWS else FEW_KEPT[architecture]
