"""The adapter's operators one by one: calls of the real chain, kept to be made again by the kernels and by their twins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from kernels import plain
from kernels.adapter.forward import Operators, adapt
from kernels.adapter.weights import AdapterWeights

OF_A_LAYER = ("qkv", "attention", "attention out", "feed-forward in", "feed-forward out")
AT_THE_END = ("queries", "side", "keep", "best tokens")


@dataclass(frozen=True)
class Call:
    """One operator on memory that is there. `name` is as in kernels/README.md; a layer's operators are those of the first."""

    name: str
    operator: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def by(self, operators: Operators) -> Callable[[], object]:
        """What makes the call."""
        return lambda: getattr(operators, self.operator)(*self.arguments, **self.options)


def record_calls(weights: AdapterWeights, states: Tensor, boundaries: Tensor) -> list[Call]:
    """Run the chain once, by the twins, and keep each of its operators' first calls."""
    recorded: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def recording(operator: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            recorded.append((operator, arguments, options))
            return getattr(plain, operator)(*arguments, **options)

        return call

    names = ("linear", "attention", "keep", "best_tokens")
    # Any: a namespace has the operators' names, which is all that the chain asks for.
    operators: Any = SimpleNamespace(**{name: recording(name) for name in names})
    adapt(weights, operators, states, boundaries)
    order = ["input", *OF_A_LAYER * len(weights.layers), *AT_THE_END]
    calls = {name: Call(name, *call) for name, call in reversed(list(zip(order, recorded, strict=True)))}
    return [calls[name] for name in dict.fromkeys(order)]


def predictions(readme: str) -> dict[str, str]:
    """Predicted µs from `kernels/README.md`, by operator and rows ("qkv, 125 rows"), and of the whole pass ("whole pass, …")."""
    section = readme.split("<!-- prediction -->")[1].split("<!-- /prediction -->")[0]
    rows: Sequence[list[str]] = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in section.strip().splitlines()]
    place = rows[0].index("predicted µs")
    return {row[0]: row[place] for row in rows[2:]}
