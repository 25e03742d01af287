"""The silence behind an utterance, as an encoder hears it that was trained on windows of a fixed length.

All states of that silence have the same input but for their positions. So one of them stands for a group of neighbours, and
counts for all of it: the logarithm of the group's size is added to the scores of an attention that reads it. The further groups
are from the audio, the wider they are, up to a limit: neighbours whose positions differ much are not alike.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.graph.writer import MASKED, GraphBuilder


@dataclass(frozen=True)
class SilentRest:
    """The silence that fills a window of `window` states behind the audio's own.

    There are as many groups behind any audio; those that would lie behind the window are masked.
    """

    FINENESS: ClassVar[int] = 4
    WIDEST: ClassVar[int] = 18
    """A group is as wide as its distance from the audio divided by `FINENESS`, and `WIDEST` states at most."""

    window: int

    def groups(self) -> list[range]:
        """Return the groups of a whole window, as distances from the first state behind the audio's own."""
        groups, first = [], 0
        while first < self.window:
            groups.append(range(first, first + min(max(1, first // self.FINENESS), self.WIDEST)))
            first = groups[-1].stop
        return groups

    def groups_behind(self, own: int) -> list[range]:
        """Return the groups that lie inside the window behind the `own` states of the audio."""
        return [group for group in self.groups() if own + group[len(group) // 2] < self.window]

    def write(self, graph: GraphBuilder, length: str) -> tuple[str, str]:
        """Return the positions of the groups' states behind `length` [1] states, and what is added to their scores."""
        places = graph.node("Add", length, self._middles(graph))
        inside = graph.node("Less", places, self._window(graph))
        last = graph.weight("rest.last", np.array([self.window - 1], np.int64))
        return graph.node("Min", places, last), graph.node("Where", inside, self._scores(graph), self._masked(graph))

    def write_bias(self, graph: GraphBuilder, length: str, states: str) -> str:
        """Return what is added to the scores of `states` [C], numbered from 0, of which `length` [B, 1, 1, 1] are true.

        The groups' states are the last of those. The result is [B, 1, 1, C].
        """
        count = len(self.groups())
        numbers = {number: graph.weight(f"rest.number.{number}", np.array(number, np.int64)) for number in (0, count - 1, count)}
        own = graph.node("Sub", length, numbers[count])
        group = graph.node("Sub", states, own)
        known = graph.node("Max", graph.node("Min", group, numbers[count - 1]), numbers[0])
        places = graph.node("Add", own, graph.node("Gather", self._middles(graph), known, axis=0))
        inside = graph.node("And", graph.node("Less", group, numbers[count]), graph.node("Less", places, self._window(graph)))
        silent = graph.node("Where", inside, graph.node("Gather", self._scores(graph), known, axis=0), self._masked(graph))
        zero = graph.weight("rest.zero", np.zeros(1, graph.float_type))
        return graph.node("Where", graph.node("Less", group, numbers[0]), zero, silent)

    def _middles(self, graph: GraphBuilder) -> str:
        return graph.weight("rest.middles", np.array([group[len(group) // 2] for group in self.groups()], np.int64))

    def _scores(self, graph: GraphBuilder) -> str:
        return graph.weight("rest.scores", np.log([len(group) for group in self.groups()]).astype(graph.float_type))

    def _window(self, graph: GraphBuilder) -> str:
        return graph.weight("rest.window", np.array([self.window], np.int64))

    def _masked(self, graph: GraphBuilder) -> str:
        return graph.weight("rest.masked", np.array([MASKED], graph.float_type))
