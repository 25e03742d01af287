"""Weights that are computed when they are read, so that a large model is never whole in memory."""

from collections.abc import Callable, Iterator, Mapping

from models.graph.linear import Float32


class LazyWeights(Mapping[str, Float32]):
    """Weights by name, each computed whenever it is read: a large model is never whole in memory."""

    def __init__(self, compute: Mapping[str, Callable[[], Float32]]) -> None:
        self._compute = compute

    def __getitem__(self, name: str) -> Float32:
        return self._compute[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._compute

    def __iter__(self) -> Iterator[str]:
        return iter(self._compute)

    def __len__(self) -> int:
        return len(self._compute)
