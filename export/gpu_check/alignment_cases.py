"""Ways to put the same positions through an LLM, each of which attends over its slots otherwise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from models.protocols import LLM, DecodeRow, Float32, PrefillRow

WHOLE = 200
RAGGED = (40, 3, 61, 17)
CUTS = (0, 1, 8, 71, 150)
DECODED = (5, 90, 33)
STEPS = 6
DRAFTS = (5, 3, 1)
OLD, NEW = 180, (30, 12)

ROOM = 20
"""Positions left at the end of a slot: for a step's padding, and for a mask that sees too many."""


@dataclass(frozen=True)
class Passage:
    """One row: a prompt's embeddings [positions, D], and the tokens that follow it."""

    prompt: Float32
    tokens: tuple[int, ...] = ()


MakePassage = Callable[[int, int], Passage]
"""A passage of so many prompt positions and so many tokens, another one each time."""


@dataclass(frozen=True)
class Case:
    """`drive` runs the passages, one in each slot from the first on, and gives logits [last positions, V] of each."""

    name: str
    passages: Sequence[Passage]
    drive: Callable[[LLM, Sequence[Passage]], list[Float32]]


def alignment_cases(make: MakePassage, max_positions: int) -> Iterator[Case]:
    """Shortened where slots have fewer `max_positions` than the default bundle's."""

    def passage(positions: int, tokens: int = 0) -> Passage:
        return make(min(positions, max_positions - ROOM - tokens), tokens)

    yield Case("one row", [passage(WHOLE)], _at_once)
    yield Case("rows of different lengths, padded", [passage(length) for length in RAGGED], _at_once)
    yield Case("prefill in chunks, cut at odd places", [passage(CUTS[-1])], _in_chunks)
    yield Case("decode steps at different positions", [passage(length, STEPS) for length in DECODED], _by_steps)
    yield Case(
        "drafts of different lengths",
        [passage(length, tokens) for length, tokens in zip(DECODED, DRAFTS, strict=True)],
        _by_drafts,
    )
    old = [passage(OLD) for _ in NEW]

    def over_old_content(llm: LLM, passages: Sequence[Passage]) -> list[Float32]:
        _at_once(llm, old)
        return _by_steps(llm, passages)

    yield Case("slots used before, old content behind", [passage(length, STEPS) for length in NEW], over_old_content)


def whole_row(llm: LLM, passage: Passage, wanted: int) -> Float32:
    """The logits [wanted, V] of a passage's last positions, all in one row from the first position of the first slot."""
    embeddings = np.concatenate([passage.prompt, llm.embed(passage.tokens)])
    return llm.prefill([PrefillRow(0, 0, embeddings, wanted)])[0]


def _at_once(llm: LLM, passages: Sequence[Passage]) -> list[Float32]:
    return llm.prefill([PrefillRow(slot, 0, each.prompt, len(each.prompt)) for slot, each in enumerate(passages)])


def _in_chunks(llm: LLM, passages: Sequence[Passage]) -> list[Float32]:
    (passage,) = passages
    cuts = [*(cut for cut in CUTS if cut < len(passage.prompt)), len(passage.prompt)]
    chunks = [PrefillRow(0, start, passage.prompt[start:end], end - start) for start, end in pairwise(cuts)]
    return [np.concatenate([llm.prefill([chunk])[0] for chunk in chunks])]


def _by_steps(llm: LLM, passages: Sequence[Passage]) -> list[Float32]:
    logits = [llm.prefill([PrefillRow(slot, 0, each.prompt)])[0] for slot, each in enumerate(passages)]
    for step in range(STEPS):
        rows = [DecodeRow(slot, len(each.prompt) + step, [each.tokens[step]]) for slot, each in enumerate(passages)]
        logits = [np.concatenate(pair) for pair in zip(logits, llm.decode(rows), strict=True)]
    return logits


def _by_drafts(llm: LLM, passages: Sequence[Passage]) -> list[Float32]:
    for slot, each in enumerate(passages):
        llm.prefill([PrefillRow(slot, 0, each.prompt)])
    return llm.decode([DecodeRow(slot, len(each.prompt), each.tokens) for slot, each in enumerate(passages)])
