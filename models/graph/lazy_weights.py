"""Weights that are computed when they are read, so that a large model is never whole in memory."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from models.graph.linear import Float32

Compute = Callable[[], Float32]


class LazyWeights(Mapping[str, Float32]):
    """Weights by name, each computed whenever it is read."""

    def __init__(self, compute: Mapping[str, Compute]) -> None:
        self._compute = compute

    def __getitem__(self, name: str) -> Float32:
        return self._compute[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._compute

    def __iter__(self) -> Iterator[str]:
        return iter(self._compute)

    def __len__(self) -> int:
        return len(self._compute)


def change_weights(given: Mapping[str, Float32], changes: Mapping[str, Compute]) -> LazyWeights:
    """Return the given weights with some in the place of others, and some more."""
    return LazyWeights({name: partial(given.__getitem__, name) for name in given} | dict(changes))
