"""The tiles of each kernel by the architecture of the device and the shape: a table, chosen by arithmetic and compile checks.

An autotuner would choose otherwise from run to run and from machine to machine; a table is the same everywhere and can be
compiled ahead of time (`kernels.compile_checks`). No entry has been timed on a GPU yet.
"""

from dataclasses import dataclass


def launch_options(warps: int, stages: int = 1) -> dict[str, int | bool]:
    """How Triton compiles and launches: stages of the software pipeline; multiply-add is fused whatever Triton's default is."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Tiles:
    """Warps of a program and stages of its pipeline."""

    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int | bool]:
        return launch_options(self.warps, self.stages)


@dataclass(frozen=True)
class LinearTiles(Tiles):
    """A program's rows and columns of the result, and how much of the inner dimension it takes at a time.

    `splits` > 1: so many programs share a tile, each with a part of the inner dimension; the parts are summed in order after.
    `persistent`: over TMA, one program a multiprocessor.
    """

    rows: int
    columns: int
    inner: int
    splits: int = 1
    persistent: bool = False


@dataclass(frozen=True)
class AttentionTiles(Tiles):
    queries: int
    keys: int


@dataclass(frozen=True)
class TopkTiles(Tiles):
    """`splits`: parts of the vocabulary, scanned at once by as many programs and merged in order."""

    rows: int
    tokens: int
    inner: int
    splits: int


ARCHITECTURES = (80, 90, 100)
MANY_ROWS = 1000
DEEP_INNER = 2048
# Up to so many columns, 64 x 64 tiles leave most of the device idle.
SPLIT_COLUMNS = 1536

# Few rows: weights are streamed once, and what counts is how many programs pull at them.
WITH_NORM = {
    80: LinearTiles(warps=4, stages=3, rows=64, columns=32, inner=64),
    90: LinearTiles(warps=4, stages=3, rows=64, columns=32, inner=128),
    100: LinearTiles(warps=4, stages=3, rows=64, columns=32, inner=128),
}
WIDE = {
    80: LinearTiles(warps=4, stages=3, rows=64, columns=64, inner=64),
    90: LinearTiles(warps=4, stages=4, rows=64, columns=64, inner=64),
    100: LinearTiles(warps=4, stages=4, rows=64, columns=64, inner=64),
}
SPLIT = {
    80: LinearTiles(warps=4, stages=3, rows=64, columns=64, inner=64, splits=4),
    90: LinearTiles(warps=4, stages=4, rows=64, columns=64, inner=64, splits=4),
    100: LinearTiles(warps=4, stages=4, rows=64, columns=64, inner=64, splits=4),
}
DEEP_SPLIT = {
    80: LinearTiles(warps=4, stages=3, rows=64, columns=64, inner=64, splits=8),
    90: LinearTiles(warps=4, stages=4, rows=64, columns=64, inner=64, splits=8),
    100: LinearTiles(warps=4, stages=4, rows=64, columns=64, inner=64, splits=8),
}
# Many rows: arithmetic bounds, so tiles are as large as registers allow.
MANY = {
    80: LinearTiles(warps=8, stages=4, rows=128, columns=128, inner=32),
    90: LinearTiles(warps=8, stages=3, rows=128, columns=128, inner=64, persistent=True),
    100: LinearTiles(warps=8, stages=3, rows=128, columns=128, inner=64, persistent=True),
}
# A narrow result falls into too few large tiles to keep every multiprocessor busy.
NARROW_COLUMNS = 1024
MANY_NARROW = {
    80: LinearTiles(warps=8, stages=4, rows=128, columns=64, inner=32),
    90: LinearTiles(warps=8, stages=4, rows=128, columns=64, inner=64, persistent=True),
    100: LinearTiles(warps=8, stages=4, rows=128, columns=64, inner=64, persistent=True),
}
REDUCE_ROWS, REDUCE_COLUMNS, REDUCE_WARPS = 4, 128, 4

ATTENTION = {
    80: AttentionTiles(warps=4, stages=2, queries=64, keys=64),
    90: AttentionTiles(warps=4, stages=2, queries=64, keys=64),
    100: AttentionTiles(warps=4, stages=2, queries=64, keys=64),
}

FEW_KEPT = {
    80: TopkTiles(warps=4, stages=3, rows=64, tokens=64, inner=64, splits=108),
    90: TopkTiles(warps=4, stages=4, rows=64, tokens=64, inner=64, splits=132),
    100: TopkTiles(warps=4, stages=4, rows=64, tokens=64, inner=64, splits=148),
}
MANY_KEPT = {
    80: TopkTiles(warps=8, stages=3, rows=64, tokens=128, inner=64, splits=8),
    90: TopkTiles(warps=8, stages=3, rows=64, tokens=128, inner=64, splits=8),
    100: TopkTiles(warps=8, stages=3, rows=64, tokens=128, inner=64, splits=8),
}
MERGE_WARPS = 8
BLANK_FILTER_BLOCK, BLANK_FILTER_WARPS = 1024, 4


def linear_tiles(architecture: int, rows: int, columns: int, inner: int, has_norm: bool) -> LinearTiles:
    """Tiles for x [rows, inner] into `columns`; rows as the buffer has them, so that a captured graph has one choice."""
    if rows >= MANY_ROWS:
        return MANY_NARROW[architecture] if columns <= NARROW_COLUMNS else MANY[architecture]
    if has_norm:
        return WITH_NORM[architecture]
    if columns > SPLIT_COLUMNS:
        return WIDE[architecture]
    return DEEP_SPLIT[architecture] if inner >= DEEP_INNER else SPLIT[architecture]


def topk_tiles(architecture: int, rows: int) -> TopkTiles:
    return MANY_KEPT[architecture] if rows >= MANY_ROWS else FEW_KEPT[architecture]
