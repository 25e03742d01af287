"""Compare the attention of an LLM over its slots with ONNX Runtime's, and with masks that are wrong by a little.

TensorRT's parser drops how much of a slot is filled, and `export.tensorrt_build` states it again. Only a GPU can show that a
built plan obeys. A mistake would not crash: the text would be somewhat worse.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx

from export.tensorrt_build import LENGTHS_INPUT
from models.graph.linear import transposed_linear
from models.llms.llama import Llama, build_decoder, embedding_table
from models.protocols import LLM, DecodeRow, Float32, PrefillRow
from models.runtimes.onnx.decoder import OnnxLLM

SLOTS = 4
"""The cases need so many."""
LARGEST_SHARE = 0.25
"""The allowed mean error, as a share of the mean error that a mask makes which is wrong by one position.

For SmolLM2-135M the latter is 1.7 to 9.1 in these cases; torch with the right mask, in bfloat16 throughout, has means of 0.14 to
0.35, and never more than a ninth of it.
"""
LENGTHS = "kv_length"
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
    """One row: the embeddings [positions, D] of a prompt, and the tokens that follow it."""

    prompt: Float32
    tokens: tuple[int, ...] = ()


MakePassage = Callable[[int, int], Passage]
"""Return a new passage of so many prompt positions and so many tokens."""


@dataclass(frozen=True)
class Case:
    """One way to put passages through an LLM. `drive` runs them, one in each slot from the first, and returns the logits
    [last positions, V] of each."""

    name: str
    passages: Sequence[Passage]
    drive: Callable[[LLM, Sequence[Passage]], list[Float32]]


def attention_cases(make: MakePassage, max_positions: int) -> Iterator[Case]:
    """Yield the cases, shortened if slots have fewer `max_positions` than those of the default bundle."""

    def passage(positions: int, tokens: int = 0) -> Passage:
        return make(min(positions, max_positions - ROOM - tokens), tokens)

    yield Case("one row", [passage(WHOLE)], _run_at_once)
    yield Case("rows of different lengths, padded", [passage(length) for length in RAGGED], _run_at_once)
    yield Case("prefill in chunks, cut at odd places", [passage(CUTS[-1])], _run_in_chunks)
    yield Case("decode steps at different positions", [passage(length, STEPS) for length in DECODED], _run_by_steps)
    drafts = [passage(length, tokens) for length, tokens in zip(DECODED, DRAFTS, strict=True)]
    yield Case("drafts of different lengths", drafts, _run_by_drafts)
    old = [passage(OLD) for _ in NEW]

    def run_over_old_content(llm: LLM, passages: Sequence[Passage]) -> list[Float32]:
        _run_at_once(llm, old)
        return _run_by_steps(llm, passages)

    yield Case("slots used before, old content behind", [passage(length, STEPS) for length in NEW], run_over_old_content)


@dataclass(frozen=True)
class Comparison:
    """The mean errors of logits in one case: of the LLM under test, and of the wrong masks by name, the subtlest first."""

    case: str
    error: float
    wrong: Mapping[str, float]

    @property
    def limit(self) -> float:
        return LARGEST_SHARE * next(iter(self.wrong.values()))

    @property
    def holds(self) -> bool:
        return self.error <= self.limit


def compare(llm: LLM, oracle: LLM, wrong: Mapping[str, LLM], make: MakePassage) -> Iterator[Comparison]:
    """Compare every case. All LLMs have `SLOTS` slots; the oracle runs each row alone, in one piece from its first position."""
    for case in attention_cases(make, min(llm.max_positions, oracle.max_positions)):
        ours = case.drive(llm, case.passages)
        expected = [_run_whole(oracle, each, len(logits)) for each, logits in zip(case.passages, ours, strict=True)]
        errors = {name: mean_error(case.drive(each, case.passages), expected) for name, each in wrong.items()}
        yield Comparison(case.name, mean_error(ours, expected), errors)


def mean_error(ours: Sequence[Float32], expected: Sequence[Float32]) -> float:
    """Return the mean difference of logits [positions, V] per row. A difference that is not finite makes it infinite."""
    differences = np.abs(np.concatenate(ours) - np.concatenate(expected))
    return float(np.nan_to_num(differences, nan=np.inf).mean(dtype=np.float64))


class Oracles:
    """The standard graph of an LLM in float32 on the CPU, as it is and with masks that are wrong."""

    def __init__(self, llama: Llama, max_positions: int, folder: Path, threads: int) -> None:
        """Write the graphs into `folder`, which must stay as long as this is in use."""
        self._folder, self._threads = folder, threads
        build_decoder(llama, max_positions=max_positions, head=transposed_linear).save(folder / "llm.onnx")
        np.save(folder / "embeddings.npy", embedding_table(llama))

    def right(self) -> OnnxLLM:
        return self._load("llm")

    def wrong(self) -> dict[str, OnnxLLM]:
        """Return LLMs by what is wrong with their masks, the subtlest first."""
        return {
            "one position too many": self._change("one_too_many", _see_one_more),
            "a triangle from the slot's first position": self._change("upper_left", _forget_lengths),
        }

    def _change(self, name: str, change: Callable[[onnx.GraphProto], None]) -> OnnxLLM:
        # The weights stay where they are: the graph names their file.
        model = onnx.load(self._folder / "llm.onnx", load_external_data=False)
        change(model.graph)
        onnx.save(model, self._folder / f"{name}.onnx")
        return self._load(name)

    def _load(self, name: str) -> OnnxLLM:
        return OnnxLLM(self._folder / f"{name}.onnx", self._folder / "embeddings.npy", slots=SLOTS, threads=self._threads)


def _see_one_more(graph: onnx.GraphProto) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.int64), "one"))
    for node in graph.node:
        if node.op_type == "Attention":
            node.input[LENGTHS_INPUT] = "one_more"
    graph.node.insert(0, onnx.helper.make_node("Add", [LENGTHS, "one"], ["one_more"]))


def _forget_lengths(graph: onnx.GraphProto) -> None:
    """Leave out what TensorRT's parser leaves out."""
    for node in graph.node:
        if node.op_type == "Attention":
            del node.input[LENGTHS_INPUT:]


def random_passages(llm: LLM) -> MakePassage:
    """Make prompts of noise that is as large as embeddings are, and random tokens."""
    generator = np.random.default_rng(0)
    deviation = float(llm.embed(range(min(1000, llm.vocabulary_size))).std())

    def make(positions: int, tokens: int) -> Passage:
        noise = generator.standard_normal((positions, llm.embedding_size), np.float32)
        return Passage(deviation * noise, tuple(generator.integers(llm.vocabulary_size, size=tokens).tolist()))

    return make


def text_passages(llm: LLM, text: Sequence[int]) -> MakePassage:
    """Make passages of a text, which is given as tokens, each from another place on."""
    starts = iter(range(0, 10**9, 7))

    def make(positions: int, tokens: int) -> Passage:
        start = next(starts)
        piece = [text[(start + index) % len(text)] for index in range(positions + tokens)]
        return Passage(llm.embed(piece[:positions]), tuple(piece[positions:]))

    return make


def _run_whole(llm: LLM, passage: Passage, wanted: int) -> Float32:
    embeddings = np.concatenate([passage.prompt, llm.embed(passage.tokens)])
    return llm.prefill([PrefillRow(0, 0, embeddings, wanted)])[0]


def _run_at_once(llm: LLM, passages: Sequence[Passage]) -> list[Float32]:
    return llm.prefill([PrefillRow(slot, 0, each.prompt, len(each.prompt)) for slot, each in enumerate(passages)])


def _run_in_chunks(llm: LLM, passages: Sequence[Passage]) -> list[Float32]:
    (passage,) = passages
    cuts = [*(cut for cut in CUTS if cut < len(passage.prompt)), len(passage.prompt)]
    chunks = [PrefillRow(0, start, passage.prompt[start:end], end - start) for start, end in pairwise(cuts)]
    return [np.concatenate([llm.prefill([chunk])[0] for chunk in chunks])]


def _run_by_steps(llm: LLM, passages: Sequence[Passage]) -> list[Float32]:
    logits = [llm.prefill([PrefillRow(slot, 0, each.prompt)])[0] for slot, each in enumerate(passages)]
    for step in range(STEPS):
        rows = [DecodeRow(slot, len(each.prompt) + step, [each.tokens[step]]) for slot, each in enumerate(passages)]
        logits = [np.concatenate(pair) for pair in zip(logits, llm.decode(rows), strict=True)]
    return logits


def _run_by_drafts(llm: LLM, passages: Sequence[Passage]) -> list[Float32]:
    for slot, each in enumerate(passages):
        llm.prefill([PrefillRow(slot, 0, each.prompt)])
    return llm.decode([DecodeRow(slot, len(each.prompt), each.tokens) for slot, each in enumerate(passages)])
